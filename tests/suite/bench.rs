//! The benchmark's gate catches what is wrong with a kernel, and the command does what it says.

use crate::gpu;
use oddgrad::bench::block;
use oddgrad::bench::comparison::{BlockOf, BlockRequest, BlockSize, Limits};
use oddgrad::bench::gate::{Verdict, judge};
use oddgrad::bench::op::{Request, bench_op};
use oddgrad::gpu::Checks;
use oddgrad::kernel::{ANY, Needs, Takes, Variant};
use oddgrad::ops;
use oddgrad::ops::trial::{Kind, Replacement};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const SCALE: &str = include_str!("../../shaders/scale/forward_1_naive.wgsl");

/// The kernel of `scale` with a part replaced.
fn edited(from: &str, to: &str) -> String {
    assert_eq!(SCALE.matches(from).count(), 1, "{from}");
    SCALE.replace(from, to)
}

/// Judges a kernel in the place of `scale`'s.
fn judged(source: String, checks: Checks) -> Verdict {
    let case = ops::scale::case();
    let variant: &'static Variant = Box::leak(Box::new(Variant {
        path: "planted.wgsl",
        source: source.leak(),
        needs: Needs::NONE,
        tile: [256, 1, 1],
        tile_name: "",
        constants: &[],
        default_on: ANY,
        takes: Takes::WORDS,
        tolerance: 0.0,
    }));
    let replacement = Replacement { pass: case.passes[0], variant, checks };
    judge(&gpu(), &case, &[replacement], 1, &mut |_| ()).unwrap().remove(0)
}

fn fault(source: String, checks: Checks) -> Kind {
    judged(source, checks).fault.expect("a fault").kind
}

#[test]
fn bench_gate_lets_a_right_kernel_through() {
    for checks in [Checks::On, Checks::Off] {
        let verdict = judged(SCALE.into(), checks);
        assert_eq!(verdict.fault, None);
        assert!(verdict.trials >= 10, "forward and gradient at every shape: {}", verdict.trials);
    }
}

#[test]
fn bench_gate_catches_a_wrong_element() {
    let source = edited("FACTOR * x[i]", "FACTOR * x[i] * select(1.0, 1.0001, i == 200u)");
    let Kind::Wrong { index: 200, .. } = fault(source, Checks::Off) else { panic!("element 200") };
}

#[test]
fn bench_gate_catches_an_unwritten_tail() {
    let source = edited("if i >= N {", "if i >= max(N, 2u) - 1u {");
    assert_eq!(fault(source, Checks::Off), Kind::Unwritten(254));
}

#[test]
fn bench_gate_catches_a_write_beyond_the_end() {
    let source = edited("if i >= N {", "if i > N {");
    for checks in [Checks::Off, Checks::On] {
        let kind = fault(source.clone(), checks);
        assert!(matches!(&kind, Kind::Beyond(names) if names.len() == 1), "{kind:?}");
    }
}

/// The result depends on what was there before: within the tolerance, but other bits each time.
#[test]
fn bench_gate_catches_other_bits_in_a_second_run() {
    let source = edited(
        "    if ACCUMULATE {",
        "    if bitcast<u32>(y[i]) == 0x7fc0deadu {\n        value *= 1.0000003;\n    }\n    if ACCUMULATE {",
    );
    let kind = fault(source, Checks::Off);
    assert!(matches!(kind, Kind::Unsteady(_)), "{kind:?}");
}

/// Each invocation hands its value to the one at the other end of the workgroup and takes back its
/// own, with nothing between writing and reading. The ends are in different subgroups wherever
/// subgroups are smaller than half a workgroup, so one of them reads before the other has written.
#[test]
fn bench_gate_catches_a_race() {
    let memory = "var<workgroup> handed: array<f32, 256>;\n";
    let racing = |barrier: &str| {
        let source = edited(
            "    if i >= N {\n        return;\n    }\n    var value = FACTOR * x[i];\n",
            &format!(
                "    let other = 255u - lane;
    let partner = i - lane + other;
    handed[other] = 0.0;
    workgroupBarrier();
    if partner < N {{
        handed[other] = FACTOR * x[partner];
    }}
    {barrier}
    var value = handed[lane];
    if i >= N {{
        return;
    }}
"
            ),
        );
        source.replace("@compute", &format!("{memory}\n@compute"))
    };
    // The barrier is all that is missing.
    assert_eq!(judged(racing("workgroupBarrier();"), Checks::On).fault, None);
    for checks in [Checks::Off, Checks::On] {
        let kind = fault(racing(""), checks);
        assert!(matches!(kind, Kind::Wrong { .. } | Kind::Unsteady(_)), "{kind:?}");
    }
}

#[test]
fn bench_gate_shows_a_kernel_that_the_device_refuses() {
    let kind = fault(edited("@workgroup_size(256)", "@workgroup_size(65536)"), Checks::On);
    assert!(matches!(kind, Kind::Refused(_)), "{kind:?}");
}

/// No kernel is as quick as a limit of a nanosecond, and the report still comes.
#[test]
fn bench_leaves_out_what_is_too_slow() {
    let request = Request {
        op: "scale".into(),
        pass: None,
        variants: Vec::new(),
        shapes: Some("5000,6000".into()),
        seed: 1,
        limits: Limits { run: 1e-9, ..Limits::default() },
        with: None,
        command: String::new(),
    };
    let gpu = gpu();
    let report =
        bench_op(&gpu, &request, &mut |l, p| block::run(&gpu, &request, l, p), &mut |_| ())
            .unwrap();
    assert!(report.rows.is_empty() && report.gates.iter().all(|g| g.fault.is_none()));
    let shapes: Vec<_> = report.left_out.iter().map(|l| l.shape.clone()).collect();
    assert_eq!(shapes, [[5000], [6000]]);
    let text = report.table();
    assert!(text.contains("not ranked: scale.forward 1 naive at 5000: too slow here"), "{text}");
}

/// A process that times a block must not outlive the one that waits for it.
#[test]
fn bench_block_ends_with_its_parent() {
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_oddgrad"))
            .args(["bench", "scale", "--block"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let out = start().wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && err.contains("--block is for the program itself"), "{err}");

    // Hours of samples, and nobody who waits for them.
    let size = BlockSize { iterations: vec![1], rounds: 1 << 30 };
    let kernels = vec!["1 naive".to_owned()];
    let (pass, shape) = ("forward".to_owned(), vec![1000]);
    let comparisons = vec![BlockOf { pass, shape, kernels, size, backwards: false }];
    let wanted =
        serde_json::to_string(&BlockRequest { seed: 1, timestamps: false, comparisons }).unwrap();
    let mut child = start();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{wanted}").unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    while told.next().unwrap().unwrap() != "block: scale.forward 1000" {}
    assert_eq!(child.try_wait().unwrap(), None, "it should be at work");
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

fn oddgrad(folder: &Path, args: &[&str]) -> (Output, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_oddgrad"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    let both = [out.stdout.clone(), out.stderr.clone()].concat();
    let text = String::from_utf8_lossy(&both).into_owned();
    (out, text)
}

const QUICK: [&str; 8] =
    ["bench", "scale", "--pass", "forward", "--shapes", "5000", "--seconds", "0.3"];

#[test]
fn bench_compares_a_kernel_from_a_file_and_writes_reports() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("my.wgsl"), SCALE).unwrap();
    std::fs::create_dir_all(at.join("shaders/scale")).unwrap();
    let readme = at.join("shaders/scale/README.md");
    std::fs::write(&readme, "a\n<!-- bench -->\n<!-- /bench -->\nb\n").unwrap();
    let mut args = QUICK.to_vec();
    args.extend(["--with", "my.wgsl", "--json", "a.json", "--md", "a.md"]);
    args.extend(["--svg", "a.svg", "--readme"]);
    let (out, text) = oddgrad(at, &args);
    assert!(out.status.success(), "{text}");
    for part in ["my.wgsl", "1 naive", "clock", "ceilings", "gate      2 of 2 kernels"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for file in ["a.svg", "a.md", "shaders/scale/README.md"] {
        let text = std::fs::read_to_string(at.join(file)).unwrap();
        assert!(text.contains("my.wgsl"), "{file}: {text}");
    }
    let svg = std::fs::read_to_string(at.join("a.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");

    let same = ["bench", "compare", "a.json", "a.json", "--limit"];
    let (out, text) = oddgrad(at, &[&same[..], &["1000000%"]].concat());
    assert!(out.status.success() && text.contains("no difference within noise"), "{text}");
    // No interval is narrow enough for no limit at all.
    let (out, text) = oddgrad(at, &[&same[..], &["0%"]].concat());
    assert_eq!(out.status.code(), Some(3), "{text}");
    assert!(text.contains("inconclusive: 2 of 2 rows"), "{text}");
    // A kernel is for an operation.
    let (out, text) = oddgrad(at, &["bench", "--with", "my.wgsl", "--json", "c.json"]);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("--with: is for one operation") && text.contains("--json"), "{text}");
    // The same with every time of one kernel doubled.
    let mut slow: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at.join("a.json")).unwrap()).unwrap();
    for key in ["median", "low", "high"] {
        let value = &mut slow["rows"][0]["seconds"][key];
        *value = (20.0 * value.as_f64().unwrap()).into();
    }
    std::fs::write(at.join("b.json"), slow.to_string()).unwrap();
    let (out, text) = oddgrad(at, &["bench", "compare", "a.json", "b.json", "--limit", "10%"]);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("REGRESSION"), "{text}");
}

#[test]
fn bench_shows_a_wrong_kernel_and_does_not_rank_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = edited("FACTOR * x[i]", "FACTOR * x[i] + 1.0");
    std::fs::write(folder.path().join("my.wgsl"), source).unwrap();
    let (out, text) = oddgrad(folder.path(), &[&QUICK[..], &["--with", "my.wgsl"]].concat());
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("not ranked: scale.forward my.wgsl: scale[0]:"), "{text}");
    std::fs::write(folder.path().join("my.wgsl"), "fn main( {").unwrap();
    let (out, text) = oddgrad(folder.path(), &[&QUICK[..], &["--with", "my.wgsl"]].concat());
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("my.wgsl:1:10"), "{text}");
}

/// The loop has no end, but some drivers leave it after some ten thousand rounds, so a round is long.
#[test]
fn bench_stops_a_kernel_that_never_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = edited(
        "    if i >= N {",
        "    var v = x[0];\n    loop {\n        v = sin5(v);\n        if v > 2.0 {\n            break;\n        }\n    }\n    if i >= N {",
    );
    source = source.replace("y[i] = value;", "y[i] = value + v;");
    source += "fn sin0(v: f32) -> f32 { return sin(v); }\n";
    for n in 1..=5 {
        let m = n - 1;
        source +=
            &format!("fn sin{n}(v: f32) -> f32 {{ return sin{m}(sin{m}(sin{m}(sin{m}(v)))); }}\n");
    }
    std::fs::write(folder.path().join("my.wgsl"), source).unwrap();
    let args = [&QUICK[..], &["--with", "my.wgsl", "--timeout", "5"]].concat();
    let (out, text) = oddgrad(folder.path(), &args);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("nothing happened for 5 s after `gate: my.wgsl"), "{text}");
}

#[test]
fn bench_prints_operations_and_contracts() {
    let here = Path::new(".");
    let (_, text) = oddgrad(here, &["bench"]);
    assert!(text.contains("matmul") && text.contains("M x N x K"), "{text}");
    let (_, text) = oddgrad(here, &["bench", "matmul", "--pass", "nt", "--contract"]);
    for part in ["out[m, n]", "@binding(3)", "ACCUMULATE", "8x8x1"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for (args, part) in [
        (&["bench", "matmull"][..], "there are adamw, add"),
        (&["bench", "softmax", "--pass", "nt"], "forward, backward"),
        (&["bench", "matmul", "--shapes", "3x3"], "M x N x K"),
        (&["bench", "scale", "--variants", "9"], "--variants 9: is none of 1"),
    ] {
        let (out, text) = oddgrad(here, args);
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.contains(part), "{part}: {text}");
    }
}
