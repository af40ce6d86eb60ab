//! What templates expect of Python: `json.dumps`, `str.format`, `datetime.strftime`.

use chrono::{DateTime, Utc};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting of a value that is written or kept.
const DEEPEST: usize = 200;
/// Widest indentation and widest field.
const WIDEST: usize = 1_000;

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// `raise_exception(message)`: the template's own refusal.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(invalid(message))
}

/// Lets a value pass that a namespace may keep: without a namespace in it (the two could be each
/// other's part, without an end) and of bounded depth. Pays for the look.
pub(super) fn kept(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    fn look(state: &State<'_, '_>, value: &Value, depth: usize) -> Result<(), Error> {
        state.consume_fuel(1)?;
        let Some(object) = value.as_object() else { return Ok(()) };
        if depth > DEEPEST || object.type_name().ends_with("::Namespace") {
            return Err(invalid("a namespace keeps a value that is nested too deep"));
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()?.checked() {
                    look(state, &item?, depth + 1)?;
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()?.checked() {
                    look(state, &value.get_item(&key?)?, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
    look(state, &value, 0)?;
    Ok(value)
}

/// Methods of Python's types, as [`minijinja_contrib::pycompat`] has them; `str.format` only with
/// widths that make sense, because it makes room for any.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if method == "format" && value.as_str().is_some_and(|text| widest_number(text) > WIDEST) {
        return Err(invalid(format!("str.format with a width above {WIDEST}")));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// The largest number behind a brace in a format string; numbers elsewhere in it are text.
fn widest_number(format: &str) -> usize {
    let fields = format.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or(rest));
    fields
        .flat_map(|field| field.split(|c: char| !c.is_ascii_digit()))
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse().unwrap_or(usize::MAX))
        .max()
        .unwrap_or(0)
}

/// `tojson`: `json.dumps` with `ensure_ascii=False` as transformers calls it; takes `indent`,
/// `separators`, `sort_keys` and `ensure_ascii`.
pub(super) fn to_json(
    state: &mut State<'_, '_>,
    value: &Value,
    indent: Option<Value>,
    args: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => args.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|v| !v.is_none()) {
        None => None,
        Some(v) => match (v.as_str(), v.as_i64()) {
            (Some(text), _) if text.len() <= WIDEST => Some(text.to_owned()),
            (_, Some(n)) if n <= WIDEST as i64 => Some(" ".repeat(n.max(0) as usize)),
            _ => return Err(invalid(format!("tojson with an indent above {WIDEST}"))),
        },
    };
    let (item, key) = match args.get::<Option<Vec<String>>>("separators")? {
        Some(pair) => match <[String; 2]>::try_from(pair) {
            Ok([item, key]) => (item, key),
            Err(_) => return Err(invalid("tojson needs two separators")),
        },
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let sorted = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ascii = args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    args.assert_all_used()?;
    let mut json = Json { state, out: String::new(), indent, item, key, sorted, ascii };
    json.value(value, 0)?;
    Ok(json.out)
}

struct Json<'s, 'a, 'b> {
    state: &'s State<'a, 'b>,
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    sorted: bool,
    ascii: bool,
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(invalid("tojson of a value that is nested too deep"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let mut empty = true;
                self.out.push('[');
                for item in value.try_iter()?.checked() {
                    self.separate(&mut empty, depth)?;
                    self.value(&item?, depth + 1)?;
                }
                self.close(empty, ']', depth);
            }
            ValueKind::Map => {
                let mut keys =
                    value.try_iter()?.checked().collect::<Result<Vec<Value>, Error>>()?;
                if self.sorted {
                    keys.sort();
                }
                let mut empty = true;
                self.out.push('{');
                for key in keys {
                    self.separate(&mut empty, depth)?;
                    match key.as_str() {
                        Some(text) => self.text(text)?,
                        None => self.text(&key.to_string())?,
                    }
                    self.out.push_str(&self.key);
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.close(empty, '}', depth);
            }
            other => return Err(invalid(format!("tojson of {other}, which JSON does not have"))),
        }
        Ok(())
    }

    fn separate(&mut self, empty: &mut bool, depth: usize) -> Result<(), Error> {
        if !std::mem::take(empty) {
            self.out.push_str(&self.item);
        }
        self.line(depth + 1);
        let indented = self.indent.as_ref().map_or(0, String::len) * (depth + 1);
        self.state.consume_fuel(1 + indented as u64 / 64)
    }

    fn close(&mut self, empty: bool, bracket: char, depth: usize) {
        if !empty {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(text.len() as u64 / 64)?;
        let quoted = serde_json::to_string(text).map_err(|e| invalid(e.to_string()))?;
        if !self.ascii {
            self.out.push_str(&quoted);
            return Ok(());
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                self.out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                self.out.push_str(&format!("\\u{unit:04x}"));
            }
        }
        Ok(())
    }
}

/// A float as Python writes it.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let text = format!("{x:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

/// C's `strftime` in the C locale for a time without a zone, as Python's `datetime.now()` has
/// none; with the flags `-`, `_`, `0`, `^` and `#`.
///
/// Errors: a conversion that C does not have, or a width, by its name.
pub(super) fn strftime(at: DateTime<Utc>, format: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at_percent) = rest.find('%') {
        out.push_str(&rest[..at_percent]);
        let spec = &rest[at_percent + 1..];
        let flags = spec.len() - spec.trim_start_matches(['-', '_', '0', '^', '#']).len();
        // E and O ask for another calendar or other digits, of which the C locale has none.
        let letters = spec[flags..].strip_prefix(['E', 'O']).unwrap_or(&spec[flags..]);
        let Some(letter) = letters.chars().next() else {
            out.push_str(&rest[at_percent..]);
            return Ok(out);
        };
        let flags = &spec[..flags];
        rest = &letters[letter.len_utf8()..];
        let padding = flags.chars().rev().find(|c| matches!(c, '-' | '_' | '0'));
        let padding = padding.map(String::from).unwrap_or_default();
        let text = match letter {
            '%' => "%".to_owned(),
            // A time without a zone has no name and no distance of one.
            'z' | 'Z' => String::new(),
            'f' => format!("{:06}", at.timestamp_subsec_micros()),
            'd' | 'e' | 'm' | 'y' | 'Y' | 'C' | 'H' | 'I' | 'k' | 'l' | 'M' | 'S' | 'j' | 'U'
            | 'W' | 'V' | 'G' | 'g' | 'u' | 'w' | 's' => {
                at.format(&format!("%{padding}{letter}")).to_string()
            }
            'a' | 'A' | 'b' | 'B' | 'h' | 'c' | 'D' | 'F' | 'n' | 'p' | 'P' | 'r' | 'R' | 't'
            | 'T' | 'x' | 'X' => at.format(&format!("%{letter}")).to_string(),
            other => {
                return Err(format!(
                    "strftime_now(\"{format}\"): %{other} is no format of C's strftime"
                ));
            }
        };
        out += &match (flags.contains('^'), flags.contains('#'), letter) {
            (_, true, 'p') => text.to_lowercase(),
            (true, _, _) | (_, true, _) => text.to_uppercase(),
            _ => text,
        };
    }
    Ok(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, format: &str) -> String {
        strftime(DateTime::from_timestamp(seconds, 0).unwrap(), format).unwrap()
    }

    /// Values of Python 3.12 on Linux.
    #[test]
    fn dates_are_those_of_python() {
        let format = "%Y-%m-%d %d %b %B %a %A %j %H:%M:%S %y %% ";
        assert_eq!(
            at(951_827_696, format),
            "2000-02-29 29 Feb February Tue Tuesday 060 12:34:56 00 % "
        );
        assert!(at(0, format).starts_with("1970-01-01 01 Jan January Thu Thursday 001 00:00:00"));
        assert!(
            at(1_798_761_599, format).starts_with("2026-12-31 31 Dec December Thu Thursday 365")
        );
        // 2001-07-08 00:34:05
        let early = 994_552_445;
        for (format, wanted) in [
            ("%-d %e %_d %d", "8  8  8 08"),
            ("%I %l %p %P %-I %k", "12 12 AM am 12  0"),
            ("%x|%X|%c", "07/08/01|00:34:05|Sun Jul  8 00:34:05 2001"),
            ("%D %F %T %R %r", "07/08/01 2001-07-08 00:34:05 00:34 12:34:05 AM"),
            ("%U %W %V %G %g %u %w %C %h", "27 27 27 2001 01 7 0 20 Jul"),
            ("[%z%Z] %f %s%n%t", "[] 000000 994552445\n\t"),
            ("%^a %^B %#p %Od %Ey", "SUN JULY am 08 01"),
            ("100%", "100%"),
        ] {
            assert_eq!(at(early, format), wanted, "{format}");
        }
        let time = DateTime::from_timestamp(early, 0).unwrap();
        for format in ["%Q", "%+", "%v", "%:z", "%10d", "%.3f"] {
            assert!(strftime(time, format).unwrap_err().contains(format), "{format}");
        }
    }

    #[test]
    fn floats_are_written_as_python_does() {
        for (x, wanted) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-7, "1e-07"),
            (1e16, "1e+16"),
            (2.5e-10, "2.5e-10"),
            (1e22, "1e+22"),
            (123456789.125, "123456789.125"),
        ] {
            assert_eq!(float(x), wanted);
        }
    }

    #[test]
    fn widths_are_those_of_fields() {
        assert_eq!(widest_number("2024 {:5} and {0:>12.3}"), 12);
        assert_eq!(widest_number("{:99999999999999999999999}"), usize::MAX);
        assert_eq!(widest_number("99999"), 0);
    }
}
