//! Every shader is valid, translates to the languages of the other backends, and belongs to an
//! operation that has a case. No adapter is needed.

use oddgrad::kernel::Pass;
use oddgrad::{bench, ops};
use std::collections::BTreeSet;
use std::path::Path;

/// Passes of the operations and of the benchmark's own kernels.
fn passes() -> Vec<&'static Pass> {
    ops::passes().into_iter().chain(bench::ceiling::PASSES.iter().copied()).collect()
}

fn validate(path: &str, source: &str) -> (naga::Module, naga::valid::ModuleInfo) {
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string_with_path(source, path)));
    let mut validator = naga::valid::Validator::new(
        naga::valid::ValidationFlags::all(),
        naga::valid::Capabilities::SUBGROUP
            | naga::valid::Capabilities::SHADER_FLOAT16
            | naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | naga::valid::Capabilities::COOPERATIVE_MATRIX,
    );
    validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{path}: {e:?}"));
    (module, info)
}

/// The module as SPIR-V, after a translation to MSL and, but for cooperative matrices, HLSL.
pub(super) fn translate(path: &str, source: &str) -> Vec<u32> {
    let (module, info) = validate(path, source);
    let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    let spirv = naga::back::spv::write_vec(&module, &info, &options, None)
        .unwrap_or_else(|e| panic!("{path}: SPIR-V: {e}"));
    assert!(!spirv.is_empty());
    let options = naga::back::msl::Options {
        lang_version: (2, 4),
        fake_missing_bindings: true,
        ..Default::default()
    };
    let (msl, _) = naga::back::msl::write_string(&module, &info, &options, &Default::default())
        .unwrap_or_else(|e| panic!("{path}: MSL: {e}"));
    assert!(msl.contains("kernel"), "{path}: no kernel in the MSL");
    // HLSL has no cooperative matrices in the shader models that naga writes.
    if source.contains("enable wgpu_cooperative_matrix;") {
        return spirv;
    }
    // 16-bit floats came with shader model 6.2.
    let f16 = source.contains("enable f16;");
    let options = naga::back::hlsl::Options {
        shader_model: if f16 {
            naga::back::hlsl::ShaderModel::V6_2
        } else {
            naga::back::hlsl::ShaderModel::V6_0
        },
        fake_missing_bindings: true,
        ..Default::default()
    };
    let mut hlsl = String::new();
    naga::back::hlsl::Writer::new(&mut hlsl, &options, &Default::default())
        .write(&module, &info, None)
        .unwrap_or_else(|e| panic!("{path}: HLSL: {e}"));
    assert!(hlsl.contains("numthreads"), "{path}: no compute shader in the HLSL");
    spirv
}

#[test]
fn every_shader_translates_to_spirv_msl_and_hlsl() {
    let mut seen = 0;
    for pass in passes() {
        for variant in pass.variants {
            translate(&variant.label(), &variant.text());
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} shaders were found");
}

#[test]
fn baseline_variants_keep_to_webgpu_defaults() {
    for pass in passes() {
        let first = &pass.variants[0];
        // Not sorted: of several that suit the last counts, and tables of matmul share a head.
        let numbers: Vec<u32> = pass.variants.iter().map(|v| v.number()).collect();
        assert!(
            numbers[0] <= 1 && numbers[1..].iter().all(|&n| n > numbers[0]),
            "{}: the baseline is number 1, or 0 where it is for reading, and comes first",
            first.path
        );
        let distinct: BTreeSet<_> = pass.variants.iter().map(|v| v.id()).collect();
        assert_eq!(distinct.len(), numbers.len(), "{}: a number stands twice", first.path);
        let needs = &first.needs;
        assert!(
            !needs.subgroups
                && !needs.f16
                && needs.cooperative.is_none()
                && needs.invocations <= 256
                && needs.workgroup_bytes <= 16384,
            "{}",
            first.path
        );
        for variant in pass.variants {
            let (module, _) = validate(&variant.label(), &variant.text());
            let entry = &module.entry_points[0];
            assert_eq!(entry.name, "main", "{}", variant.path);
            let invocations: u32 = entry.workgroup_size.iter().product();
            let needs = &variant.needs;
            assert!(
                invocations <= needs.invocations.max(256),
                "{}: {invocations} invocations",
                variant.label()
            );
            let bytes = bench::facts::workgroup_bytes(&variant.text()).unwrap();
            assert!(
                bytes <= u64::from(needs.workgroup_bytes.max(16384)),
                "{}: {bytes} bytes of workgroup memory",
                variant.label()
            );
        }
    }
}

/// WGSL zeroes a variable each time its declaration is reached, but Tint's SPIR-V does so only once
/// a function (seen in npm webgpu 0.6.2), so a sum that is declared in a loop must say its zero.
#[test]
fn variables_in_loops_are_initialised() {
    for pass in ops::passes() {
        for variant in pass.variants {
            let mut blocks: Vec<bool> = Vec::new(); // is this block a loop's?
            for (i, line) in variant.source.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default().trim();
                assert!(
                    !(code.starts_with("var ") && !code.contains('=') && blocks.contains(&true)),
                    "{}:{}: give the variable its first value: {code}",
                    variant.path,
                    i + 1
                );
                let heads = code.starts_with("for ") || code.starts_with("while ");
                for c in code.chars() {
                    match c {
                        '{' => blocks.push(heads || code.starts_with("loop")),
                        '}' => drop(blocks.pop()),
                        _ => {}
                    }
                }
            }
        }
    }
}

#[test]
fn no_shader_is_an_orphan_and_every_operation_has_a_case() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let named: BTreeSet<String> =
        passes().iter().flat_map(|p| p.variants.iter().map(|v| v.path.to_owned())).collect();
    let mut found = BTreeSet::new();
    for folder in std::fs::read_dir(&root).unwrap() {
        let folder = folder.unwrap().path();
        let op = folder.file_name().unwrap().to_str().unwrap().to_owned();
        if !folder.is_dir() {
            continue;
        }
        assert!(
            op == "bench" || ops::cases().iter().any(|c| c.op == op),
            "shaders/{op} has no operation with a case"
        );
        for file in std::fs::read_dir(&folder).unwrap() {
            let file = file.unwrap().file_name().into_string().unwrap();
            if file.ends_with(".wgsl") {
                found.insert(format!("{op}/{file}"));
            }
        }
    }
    assert_eq!(found, named, "shader files on the left, files that operations name on the right");
    let source =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/mod.rs"))
            .unwrap();
    for case in ops::cases() {
        assert!(source.contains(&format!("pub mod {};", case.op)), "no file for {}", case.op);
    }
    for pass in passes() {
        for v in pass.variants {
            let serves = |p: &&&Pass| p.variants.iter().any(|other| other.path == v.path);
            let alone = passes().iter().filter(serves).count() == 1;
            let name = v.path.strip_prefix(&format!("{}/", pass.op)).unwrap_or_default();
            let head = name.split_once(&format!("_{}_", v.number())).unwrap_or_default().0;
            assert!(
                if alone { head == pass.name } else { !head.is_empty() },
                "{} should be {}/{}_{}_…, or name what its passes have in common",
                v.path,
                pass.op,
                pass.name,
                v.number()
            );
        }
    }
}
