//! What a kernel's text says about it: workgroup memory, bindings, constants.

use crate::error::{Error, Result};
use crate::kernel::{Pass, Variant};
use naga::AddressSpace;
use std::path::Path;

/// Parses and validates WGSL as far as it can be without a device.
///
/// # Errors
/// The compiler's message with line and caret.
pub fn parse(path: &str, source: &str) -> Result<naga::Module> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| {
        Error::file(path, format!("no valid WGSL\n{}", e.emit_to_string_with_path(source, path)))
    })?;
    let mut validator = naga::valid::Validator::new(
        naga::valid::ValidationFlags::all(),
        naga::valid::Capabilities::SUBGROUP
            | naga::valid::Capabilities::SHADER_FLOAT16
            | naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | naga::valid::Capabilities::COOPERATIVE_MATRIX,
    );
    validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    validator.validate(&module).map_err(|e| {
        Error::file(path, format!("no valid WGSL\n{}", e.emit_to_string_with_path(source, path)))
    })?;
    Ok(module)
}

/// Bytes of `var<workgroup>` in a kernel; None if the text is not valid.
pub fn workgroup_bytes(source: &str) -> Option<u64> {
    let module = naga::front::wgsl::parse_str(source).ok()?;
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).ok()?;
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
    Some(shared.map(|(_, v)| u64::from(layouter[v.ty].size)).sum())
}

/// Bindings of group 0 in order: number, and whether it is read-only.
fn bindings(module: &naga::Module) -> Vec<(u32, bool)> {
    let mut all: Vec<(u32, bool)> = module
        .global_variables
        .iter()
        .filter_map(|(_, v)| {
            let binding = v.binding.as_ref()?;
            let AddressSpace::Storage { access } = v.space else { return None };
            (binding.group == 0)
                .then_some((binding.binding, !access.contains(naga::StorageAccess::STORE)))
        })
        .collect();
    all.sort_unstable();
    all
}

/// Names of `const NAME: T = …;` lines that the engine can set.
fn constants(source: &str) -> Vec<&str> {
    let name = |line: &'_ str| -> Option<usize> { line.strip_prefix("const ")?.find(':') };
    source.lines().filter_map(|l| Some(&l[6..6 + name(l)?])).collect()
}

/// Checks a kernel from outside against the first variant of `pass`: entry point, bindings,
/// constants.
///
/// # Errors
/// Everything that does not fit, with what to write.
pub fn check_contract(path: &str, source: &str, pass: &Pass) -> Result<()> {
    let ours = pass.variants[0].source;
    let module = parse(path, source)?;
    let mut problems = Vec::new();
    let mut problem = |what: String| {
        problems.push(crate::error::Problem::new(path, what));
    };
    let entry = module.entry_points.iter().find(|e| e.name == "main");
    if entry.is_none_or(|e| e.stage != naga::ShaderStage::Compute) {
        problem("has no entry point `@compute fn main`".into());
    }
    let reference = parse(pass.variants[0].path, ours)?;
    let (want, got) = (bindings(&reference), bindings(&module));
    for (binding, read_only) in &want {
        match got.iter().find(|(b, _)| b == binding) {
            // A kernel may leave out what it does not read.
            None if *read_only => (),
            None => problem(format!("does not write @group(0) @binding({binding})")),
            Some((_, r)) if r != read_only => problem(format!(
                "@binding({binding}) must be var<storage, {}>",
                if *read_only { "read" } else { "read_write" }
            )),
            Some(_) => (),
        }
    }
    for (binding, _) in got.iter().filter(|(b, _)| !want.iter().any(|(w, _)| w == b)) {
        problem(format!("@binding({binding}) is not bound to anything"));
    }
    // Constants of the ladder's first variant that are not its own business: all that the
    // operation sets have a line in every variant.
    let there = constants(source);
    for name in shared_constants(pass).into_iter().filter(|n| !there.contains(n)) {
        problem(format!("lacks a line `const {name}: … = …;` at its start, which the engine sets"));
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::input(
        format!("the kernel does not fit {}.{}; see --contract", pass.op, pass.name),
        problems,
    ))
}

/// Constants that every variant declares and leaves to the operation: no tile sizes of one, and
/// nothing that tells the passes of a file apart.
fn shared_constants(pass: &Pass) -> Vec<&'static str> {
    let left = |v: &Variant, name: &str| {
        constants(v.source).contains(&name) && v.constants.iter().all(|(own, _)| *own != name)
    };
    let in_all = |name: &&str| pass.variants.iter().all(|v| left(v, name));
    constants(pass.variants[0].source).into_iter().filter(in_all).collect()
}

/// What a kernel of `pass` is given and must do: the head of its first variant, up to the
/// bindings.
pub fn contract(pass: &Pass) -> String {
    let first = &pass.variants[0];
    // Of a file that serves several passes, as it is for this one.
    let source = first.text();
    let end = source.lines().position(|l| l.starts_with("@compute")).unwrap_or(0);
    // Helpers of the variant between the bindings and the entry point are its own.
    let last_binding = source.lines().position(|l| l.starts_with("@group"));
    let bindings = source.lines().filter(|l| l.starts_with("@group")).count();
    let shown = last_binding.map_or(end, |at| (at + bindings).min(end));
    let number = first.number();
    let mut text =
        format!("// {}.{}, as variant {number} has it ({})\n", pass.op, pass.name, first.path);
    for line in source.lines().take(shown) {
        text.push_str(line);
        text.push('\n');
    }
    let [x, y, z] = first.tile;
    text.push_str(&format!(
        "\n\
         // Entry point: @compute fn main.\n\
         // The engine rewrites these lines: {}.\n\
         // The grid is the outputs along x, y, z over the tile, rounded up. Variant {number} has the tile\n\
         // {x}x{y}x{z}; give yours with --tile. A long one-dimensional grid is folded: use\n\
         // group.x + group.y * groups.x.\n\
         // Do not use arrayLength: buffers may be longer than their shape.\n",
        match shared_constants(pass) {
            names if names.is_empty() => "none".into(),
            names => names.join(", "),
        }
    ));
    text
}

/// Reads a kernel from a file and leaks it: kernels live as long as the program.
///
/// # Errors
/// A file that cannot be read.
pub fn read_kernel(path: &Path) -> Result<(&'static str, &'static str)> {
    let source = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    Ok((path.display().to_string().leak(), source.leak()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_count_workgroup_memory() {
        let wgsl = "var<workgroup> a: array<vec4<f32>, 16>;\nvar<workgroup> b: array<f32, 3>;\n\
                    @compute @workgroup_size(1) fn main() { a[0] = vec4(b[0]); }";
        assert_eq!(workgroup_bytes(wgsl), Some(256 + 12));
        assert_eq!(workgroup_bytes("fn"), None);
    }

    #[test]
    fn facts_every_variant_keeps_its_own_contract() {
        for pass in crate::ops::passes() {
            for v in pass.variants {
                check_contract(v.path, v.source, pass).unwrap_or_else(|e| panic!("{e}"));
            }
            assert!(contract(pass).contains("@group(0) @binding(0)"), "{}", pass.op);
        }
    }

    #[test]
    fn facts_name_what_a_kernel_lacks() {
        let pass = crate::ops::passes().into_iter().find(|p| p.op == "softmax").unwrap();
        let broken = check_contract("my.wgsl", "fn main( {", pass).unwrap_err().to_string();
        assert!(broken.contains("my.wgsl:1:10") && broken.contains('^'), "{broken}");
        let other = "const R: u32 = 1u;\n@group(0) @binding(0) var<storage, read_write> x: array<f32>;\n\
                     @compute @workgroup_size(1) fn main() { x[0] = f32(R); }";
        let text = check_contract("my.wgsl", other, pass).unwrap_err().to_string();
        for part in ["@binding(0) must be var<storage, read>", "@binding(1)", "const C"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
