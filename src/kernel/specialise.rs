//! Constants into WGSL text.

/// The value of a WGSL `const`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Const {
    /// A `u32`.
    U32(u32),
    /// An `f32`; must be finite.
    F32(f32),
    /// A `bool`.
    Bool(bool),
}

impl From<u32> for Const {
    fn from(v: u32) -> Self {
        Self::U32(v)
    }
}
impl From<usize> for Const {
    fn from(v: usize) -> Self {
        Self::U32(u32::try_from(v).expect("a shader constant fits 32 bits"))
    }
}
impl From<f32> for Const {
    fn from(v: f32) -> Self {
        assert!(v.is_finite(), "WGSL has no literal for {v}");
        Self::F32(v)
    }
}
impl From<bool> for Const {
    fn from(v: bool) -> Self {
        Self::Bool(v)
    }
}

impl std::fmt::Display for Const {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::U32(v) => write!(f, "{v}u"),
            // Seventeen digits are more than an f32 has; `e` notation is valid WGSL for any value.
            Self::F32(v) => write!(f, "{v:e}f"),
            Self::Bool(v) => write!(f, "{v}"),
        }
    }
}

/// Rewrites the value of each named `const NAME: T = literal;` line of a WGSL source.
///
/// The file on disk stays valid WGSL with its default values; this is the only specialisation
/// mechanism (`override` cannot size function-scope arrays, which register tiles need).
///
/// # Errors
/// Names the first constant that the source does not declare on a line of its own.
pub fn specialise(source: &str, constants: &[(&'static str, Const)]) -> Result<String, String> {
    let mut lines: Vec<String> = source.lines().map(str::to_owned).collect();
    for (name, value) in constants {
        let head = format!("const {name}:");
        let line = lines
            .iter_mut()
            .find(|line| line.starts_with(&head))
            .ok_or_else(|| format!("no line `const {name}: … = …;` in the shader"))?;
        let (declaration, rest) =
            line.split_once('=').ok_or_else(|| format!("the line of const {name} has no `=`"))?;
        let comment = rest.split_once(';').map_or("", |(_, tail)| tail);
        *line = format!("{}= {value};{comment}", declaration);
    }
    Ok(lines.join("\n"))
}
