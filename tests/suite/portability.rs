//! The operations' cases as files, for other implementations of WebGPU to compile and run.
//!
//! `scripts/portability.sh` names a folder in `ODDGRAD_EXPORT` and hands what is written there to
//! Tint, Dawn and spirv-val; without the variable the files go to a temporary folder, and the test
//! is that the cases reach every kernel and that each specialised kernel translates.
//!
//! In the folder:
//! - `modules/N.wgsl` and `.spv`: every kernel as the file is, then as each case specialises it;
//! - `manifest.json`: the modules, and the runs: buffers, dispatches, and what must come out;
//! - `data.bin`: little-endian 32-bit words of inputs and constants;
//! - `expected.bin`: little-endian 64-bit floats.

use crate::shaders::translate;
use oddgrad::graph::{DType, Graph, Role, Var};
use oddgrad::kernel::{Class, Needs, Target, Variant};
use oddgrad::ops;
use oddgrad::ops::case::{Array, Data, OpCase};
use oddgrad::ops::trial::{Derivatives, GRADIENT_TOLERANCE, declare, derivatives, pinnings, rng};
use oddgrad::ops::values::Values;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Runs on buffers beyond this many bytes are left out: the point is the shapes' awkwardness.
const LARGEST: u64 = 4 << 20;

/// What must come out of a variable.
struct Expected {
    var: Var,
    /// Which elements; none for all.
    at: Option<Vec<usize>>,
    /// Position and count in `expected.bin`, in floats.
    values: (usize, usize),
    tolerance: f64,
}

struct Export {
    folder: PathBuf,
    modules: Vec<Value>,
    number_of: HashMap<String, usize>,
    runs: Vec<Value>,
    seen: BTreeSet<String>,
    data: Vec<u8>,
    expected: Vec<f64>,
}

/// The largest error that a kernel of `graph` may have beyond the case's.
fn lossy(graph: &Graph) -> f64 {
    graph.calls().iter().fold(0.0, |most: f64, c| most.max(c.variant.tolerance))
}

impl Export {
    fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("modules")).unwrap();
        let mut export = Self {
            folder: folder.to_owned(),
            modules: Vec::new(),
            number_of: HashMap::new(),
            runs: Vec::new(),
            seen: BTreeSet::new(),
            data: Vec::new(),
            expected: Vec::new(),
        };
        for pass in ops::passes() {
            for variant in pass.variants {
                export.module(variant, variant.text().into_owned(), variant.tile_name);
            }
        }
        export
    }

    /// The number of a module, which is written if it is new.
    fn module(&mut self, variant: &Variant, source: String, constants: &str) -> usize {
        if let Some(&known) = self.number_of.get(&source) {
            return known;
        }
        let number = self.modules.len();
        let Needs { subgroups, lanes, f16, cooperative, invocations, workgroup_bytes } =
            variant.needs;
        let spirv = translate(&format!("{} {constants}", variant.path), &source);
        let file = |extension| self.folder.join(format!("modules/{number}.{extension}"));
        std::fs::write(file("wgsl"), &source).unwrap();
        let words: Vec<u8> = spirv.iter().flat_map(|w| w.to_le_bytes()).collect();
        std::fs::write(file("spv"), words).unwrap();
        self.modules.push(json!({
            "path": variant.path,
            "tile": variant.tile_name,
            "constants": constants,
            "subgroups": subgroups,
            "lanes": lanes,
            "f16": f16,
            "cooperative": cooperative.is_some(),
            "invocations": invocations,
            "workgroup_bytes": workgroup_bytes,
        }));
        self.number_of.insert(source, number);
        number
    }

    /// Appends 32-bit words; returns where they begin, in words.
    fn words(&mut self, bytes: &[u8]) -> usize {
        let at = self.data.len() / 4;
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(4), 0);
        at
    }

    fn floats(&mut self, values: &[f32]) -> usize {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.words(&bytes)
    }

    fn array(&mut self, a: &Array) -> usize {
        match &a.data {
            Data::Float { values, .. } => {
                let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                self.words(&a.stored.encode(&values))
            }
            Data::Index(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                self.words(&bytes)
            }
        }
    }

    fn truth(&mut self, values: impl IntoIterator<Item = f64>) -> (usize, usize) {
        let at = self.expected.len();
        self.expected.extend(values);
        (at, self.expected.len() - at)
    }

    /// Appends what `graph` does, unless another choice of variants made the same calls before.
    fn run(&mut self, name: &str, graph: &Graph, data: &HashMap<Var, usize>, want: &[Expected]) {
        let buffer = |var: Var| {
            let (base, start) = graph.place(var);
            assert_eq!(start, 0, "the beds bind buffers from their beginning");
            base.index()
        };
        let calls: Vec<Value> = graph
            .calls()
            .iter()
            .map(|call| {
                let source = call.variant.specialise(&call.constants).unwrap();
                let constants = call.variant.constants.iter().chain(&call.constants);
                let constants: Vec<_> = constants.map(|(n, v)| format!("{n}={v}")).collect();
                json!({
                    "pass": call.full_name(),
                    "module": self.module(call.variant, source, &constants.join(" ")),
                    "grid": call.grid,
                    "reads": call.reads.iter().map(|&v| buffer(v)).collect::<Vec<_>>(),
                    "writes": call.writes.iter().map(|&v| buffer(v)).collect::<Vec<_>>(),
                })
            })
            .collect();
        if !self.seen.insert(format!("{name} {calls:?}")) {
            return;
        }
        let mut buffers = Vec::new();
        for (i, info) in graph.vars().iter().enumerate() {
            let held = data.iter().find(|(var, _)| var.index() == i).map(|(_, &at)| at);
            // Temporaries start as NaN, so that an element a kernel forgets is seen.
            let (fill, at) = match &info.role {
                Role::Temp => ("poison", None),
                Role::State => ("zero", None),
                Role::Input => ("data", held),
                Role::Constant(bytes) => ("data", Some(self.words(bytes))),
                // Never bound: `buffer` names its base.
                Role::View { .. } => ("zero", None),
            };
            buffers.push(json!({ "words": info.bytes().div_ceil(4), "fill": fill, "at": at }));
        }
        let want: Vec<Value> = want
            .iter()
            .map(|e| {
                json!({
                    "buffer": e.var.index(),
                    "name": graph.info(e.var).name,
                    "at": e.at,
                    "first": e.values.0,
                    "count": e.values.1,
                    "tolerance": e.tolerance,
                })
            })
            .collect();
        let pinned: BTreeMap<_, _> =
            graph.target().pinned.iter().map(|(pass, id)| (pass, id.to_string())).collect();
        self.runs.push(json!({
            "name": name,
            "pinned": pinned,
            "buffers": buffers,
            "calls": calls,
            "expected": want,
        }));
    }

    fn forward(&mut self, case: &OpCase, shape: &[usize], target: &Target) {
        let inputs = (case.inputs)(shape, &mut rng(shape, 0));
        let at: Vec<usize> = inputs.iter().map(|a| self.array(a)).collect();
        let truth: Vec<_> =
            (case.reference)(shape, &inputs).into_iter().map(|v| self.truth(v)).collect();
        for target in pinnings(case, target) {
            let mut graph = Graph::new(&target);
            let vars = declare(&mut graph, &inputs);
            let outputs = (case.build)(&mut graph, shape, &vars);
            let want: Vec<_> = outputs
                .iter()
                .zip(&truth)
                .map(|(&var, &values)| Expected {
                    var,
                    at: None,
                    values,
                    tolerance: case.tolerance.max(lossy(&graph)),
                })
                .collect();
            let data = vars.into_iter().zip(at.iter().copied()).collect();
            self.run(&format!("{} {shape:?} forward", case.op), &graph, &data, &want);
        }
    }

    /// The operation is applied twice to the same inputs, so that its gradient kernels first write
    /// and then add: twice the gradient must come out.
    fn gradient(&mut self, case: &OpCase, shape: &[usize], target: &Target) {
        let Derivatives { inputs, cotangents, samples } =
            derivatives(case, shape, Values::Normal, 0);
        let at: Vec<usize> = inputs.iter().map(|a| self.array(a)).collect();
        let seeds_at: Vec<usize> = cotangents.iter().map(|c| self.floats(c)).collect();
        let truth: Vec<_> =
            samples.iter().map(|s| self.truth(s.values.iter().map(|d| 2.0 * d))).collect();
        for target in pinnings(case, target) {
            let mut graph = Graph::new(&target);
            let vars = declare(&mut graph, &inputs);
            let mut data: HashMap<Var, usize> = vars.iter().copied().zip(at.clone()).collect();
            let mut seeds = Vec::new();
            for _ in 0..2 {
                let outputs = (case.build)(&mut graph, shape, &vars);
                for (&out, &at) in outputs.iter().zip(&seeds_at) {
                    let dims = graph.shape(out).to_vec();
                    let seed = graph.input("cotangent", &dims, DType::F32);
                    data.insert(seed, at);
                    seeds.push((out, seed));
                }
            }
            graph.backward_from(&seeds);
            let want: Vec<_> = samples
                .iter()
                .zip(&truth)
                .map(|(sample, &values)| Expected {
                    var: graph
                        .grad(vars[sample.input])
                        .expect("an input with a slope has a gradient"),
                    at: Some(sample.at.clone()),
                    values,
                    tolerance: GRADIENT_TOLERANCE * case.tolerance.max(lossy(&graph)),
                })
                .collect();
            self.run(&format!("{} {shape:?} gradient", case.op), &graph, &data, &want);
        }
    }

    fn finish(self) -> (Vec<Value>, Vec<Value>) {
        let manifest = json!({ "modules": self.modules, "runs": self.runs });
        std::fs::write(self.folder.join("manifest.json"), manifest.to_string()).unwrap();
        std::fs::write(self.folder.join("data.bin"), self.data).unwrap();
        let expected: Vec<u8> = self.expected.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(self.folder.join("expected.bin"), expected).unwrap();
        (self.modules, self.runs)
    }
}

#[test]
fn cases_reach_every_kernel_and_every_specialised_kernel_translates() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("ODDGRAD_EXPORT")
        .map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let target = Target {
        subgroups: true,
        lanes: 8,
        f16: true,
        cooperative: ops::passes()
            .iter()
            .flat_map(|p| p.variants)
            .filter_map(|v| v.needs.cooperative)
            .collect(),
        ..Target::baseline(Class::Software)
    };
    let mut export = Export::new(&folder);
    for case in ops::cases() {
        for shape in case.shapes {
            let inputs = (case.inputs)(shape, &mut rng(shape, 0));
            let largest = inputs.iter().map(|a| 4 * a.shape.iter().product::<usize>() as u64).max();
            if largest.unwrap_or(0) > LARGEST {
                continue;
            }
            export.forward(&case, shape, &target);
            if case.differentiable_at(shape) {
                export.gradient(&case, shape, &target);
            }
        }
    }
    let (modules, runs) = export.finish();
    let mut reached = BTreeSet::new();
    for run in &runs {
        for call in run["calls"].as_array().unwrap() {
            let module = call["module"].as_u64().unwrap() as usize;
            let of = |key: &str| modules[module][key].as_str().unwrap();
            reached.insert((call["pass"].as_str().unwrap(), of("path"), of("tile")));
        }
    }
    let mut unreached = Vec::new();
    for pass in ops::passes() {
        let name = pass.full_name();
        let missed = |v: &&Variant| !reached.contains(&(name.as_str(), v.path, v.tile_name));
        unreached
            .extend(pass.variants.iter().filter(missed).map(|v| format!("{name} {}", v.label())));
    }
    assert!(unreached.is_empty(), "no case runs {unreached:?}");
}
