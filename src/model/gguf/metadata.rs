//! What a GGUF file says of its model: values by keys.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::error::Problem;

/// A value of the metadata, whatever its width in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned integers of 8 to 64 bits.
    Unsigned(u64),
    /// Signed integers of 8 to 64 bits.
    Signed(i64),
    /// Floats of 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array, of values of one type.
    List(Vec<Value>),
}

impl Value {
    /// A float of 32 bits as the shortest decimal number that it is the nearest to: 1e-5, not
    /// 9.999999747378752e-6.
    pub fn of_f32(value: f32) -> Self {
        Self::Float(value.to_string().parse().unwrap_or(f64::NAN))
    }

    /// Texts as a list.
    pub fn texts(texts: impl IntoIterator<Item = String>) -> Self {
        Self::List(texts.into_iter().map(Self::Text).collect())
    }

    /// The value as a whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The value as a finite number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Unsigned(n) => Some(*n as f64),
            Self::Signed(n) => Some(*n as f64),
            Self::Float(x) => Some(*x).filter(|x| x.is_finite()),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "true or false",
            Self::Text(_) => "a text",
            Self::List(_) => "an array",
        }
    }
}

/// For messages: arrays by their length alone.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(n) => n.fmt(f),
            Self::Signed(n) => n.fmt(f),
            Self::Float(x) => x.fmt(f),
            Self::Bool(b) => b.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::List(list) => write!(f, "an array of {}", list.len()),
        }
    }
}

/// Values by their keys, and where they are from.
#[derive(Debug, Clone)]
pub struct Metadata {
    place: String,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn new(path: &Path, values: BTreeMap<String, Value>) -> Self {
        Self { place: path.display().to_string(), values }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Every key with its value, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }
}

/// Reads the values of keys and collects what is wrong with them.
pub(super) struct Reading<'a> {
    pub metadata: &'a Metadata,
    pub problems: Vec<Problem>,
}

impl<'a> Reading<'a> {
    pub fn of(metadata: &'a Metadata) -> Self {
        Self { metadata, problems: Vec::new() }
    }

    /// Something is wrong with `key`.
    pub fn problem(&mut self, key: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(format!("{}: {key}", self.metadata.place), what));
    }

    fn found<T>(
        &mut self,
        key: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.metadata.get(key)?;
        let found = read(value);
        if found.is_none() {
            self.problem(key, format!("is {value}, {}; {wanted} is expected", value.kind()));
        }
        found
    }

    pub fn whole(&mut self, key: &str) -> Option<u64> {
        self.found(key, "a whole number", Value::as_u64)
    }

    /// A whole number that must be there; after a problem 0.
    pub fn needed(&mut self, key: &str) -> u64 {
        if self.metadata.get(key).is_none() {
            self.problem(key, "is missing");
        }
        self.whole(key).unwrap_or(0)
    }

    pub fn number(&mut self, key: &str) -> Option<f64> {
        self.found(key, "a number", Value::as_f64)
    }

    pub fn flag(&mut self, key: &str) -> Option<bool> {
        self.found(key, "true or false", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    pub fn text(&mut self, key: &str) -> Option<&'a str> {
        self.found(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of which `each` reads every value.
    pub fn list<T>(
        &mut self,
        key: &str,
        wanted: &str,
        each: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.found(key, wanted, |value| match value {
            Value::List(list) => list.iter().map(&each).collect(),
            _ => None,
        })
    }
}
