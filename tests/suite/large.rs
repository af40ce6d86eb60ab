//! Tensors beyond what an adapter binds in one piece: a model on a device that binds little gives the
//! bits that it gives elsewhere, and an embedding of the size of Qwen2's trains.

use crate::place::Place;
use crate::{golden, gpu};
use oddgrad::data::example::{Example, Sequence};
use oddgrad::data::pack::{Capacity, pack};
use oddgrad::gpu::{Gpu, list_adapters};
use oddgrad::graph::{DType, GRAD, Graph, Init};
use oddgrad::kernel::Target;
use oddgrad::model::config::ModelConfig;
use oddgrad::model::generate::{Generator, Room, unwatched};
use oddgrad::model::sampling::Sampling;
use oddgrad::model::weights::FolderWeights;
use oddgrad::ops::adamw;
use oddgrad::ops::embedding::embedding;
use oddgrad::ops::gather_index::{GatherIndex, build_index};
use oddgrad::ops::nll::nll;
use oddgrad::ops::token_logp::token_logp;
use oddgrad::program::{Program, ProgramOptions, Store};
use oddgrad::train::learner::{FIRST_MOMENT, Learner, SECOND_MOMENT};
use oddgrad::train::objectives::{LOGP, Objective, orpo::Orpo};
use oddgrad::train::recipe::OptimSettings;
use oddgrad::wgpu;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The adapter of the other tests, opened so that it binds no more than `bytes`.
fn binding(bytes: u64) -> Rc<Gpu> {
    let adapter = list_adapters(None).into_iter().next().expect("tests need an adapter");
    let limits = wgpu::Limits { max_storage_buffer_binding_size: bytes, ..wgpu::Limits::default() };
    let request = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&request)).unwrap();
    Rc::new(Gpu::from_wgpu(&adapter, device, queue).unwrap())
}

fn examples() -> Vec<Example> {
    let side = |ids: &[u32]| Sequence { ids: ids.to_vec(), response_start: 3 };
    let example = |row, chosen: &[u32], rejected: &[u32]| Example {
        row,
        chosen: side(chosen),
        rejected: Some(side(rejected)),
        desirable: None,
    };
    // Ids on both sides of the borders of blocks of 128 rows, the first and the last.
    vec![
        example(0, &[3, 0, 127, 128, 191, 192, 511], &[3, 0, 127, 255, 256, 4]),
        example(1, &[3, 383, 384, 511, 0, 4], &[3, 383, 384, 1, 2, 510, 4]),
    ]
}

/// What two steps of training leave, by name, and tokens that the model continues a prompt with.
fn trained(gpu: &Rc<Gpu>, folder: &str) -> (BTreeMap<String, Vec<u32>>, Vec<u32>, usize) {
    let folder = golden(folder);
    let config = ModelConfig::load(&folder).unwrap();
    let weights = FolderWeights::open(&folder, &config).unwrap();
    let examples = examples();
    let capacity = Capacity { tokens: 40, targets: 40, pairs: 2 };
    let stream = pack(&examples.iter().collect::<Vec<_>>(), capacity).unwrap().remove(0);
    let objective = Orpo::default();
    let optim = OptimSettings { weight_decay: 0.1, ..OptimSettings::new(1e-2) };
    let mut learner = Learner::new(gpu, &config, &weights, capacity, &objective, &optim).unwrap();
    let coefficients = objective.coefficients(&[&stream], 1).remove(0);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut found = BTreeMap::new();
    for step in 0..2 {
        let results = learner.accumulate(&stream, &coefficients).unwrap();
        found.insert(format!("log-probs {step}"), bits(results.get(LOGP)));
        for (name, gradient) in learner.read_state(GRAD).unwrap() {
            found.insert(format!("{name}{GRAD} {step}"), bits(&gradient.data));
        }
        let norm = learner.update(1e-2).unwrap();
        found.insert(format!("norm {step}"), bits(&[norm]));
    }
    for suffix in ["", FIRST_MOMENT, SECOND_MOMENT] {
        for (name, state) in learner.read_state(suffix).unwrap() {
            found.insert(format!("{name}{suffix}"), bits(&state.data));
        }
    }
    let room = Room { sequences: 2, length: 24 };
    let generator = Generator::new(gpu, learner.store(), &config, room).unwrap();
    let prompts = [vec![3, 128, 511], vec![3, 192]];
    let new = generator.generate(&prompts, &[], &Sampling::greedy(12), &mut unwatched).unwrap();
    let calls = learner.micro_program().graph().calls().len()
        + learner.update_program().graph().calls().len();
    (found, new.concat(), calls)
}

#[test]
fn a_device_that_binds_little_gives_the_same_bits() {
    // The embedding is of 128 KiB, all else below 48.
    for (folder, tables) in [("llama_tied", 1), ("llama_untied", 2)] {
        let (whole, tokens, calls) = trained(&binding(128 << 20), folder);
        let (parts, tokens_of_parts, more) = trained(&binding(48 << 10), folder);
        // Rows gathered and added to, in four blocks; sums of squares and AdamW of each table in three.
        assert_eq!(more, calls + 6 + 4 * tables, "{folder}: {calls} calls");
        assert_eq!(whole.len(), parts.len());
        for (name, values) in &whole {
            assert!(values == &parts[name], "{folder}: {name} has other bits");
        }
        assert_eq!(tokens, tokens_of_parts);
    }
}

/// A frozen table and head, stored in fewer bits: the same rows and the same log-probs.
#[test]
fn what_is_stored_in_fewer_bits_is_cut_too() {
    let (v, d, n) = (300, 32, 7);
    let values: Vec<f32> = (0..v * d).map(|i| (i % 251) as f32 * 0.01 - 1.25).collect();
    let ids = [0u32, 299, 127, 128, 256, 255, 0];
    let found = |dtype: DType, most: u64| {
        let gpu = &binding(most);
        let store = Store::new(gpu);
        store.write_bytes("table", &[v, d], dtype, &dtype.encode(&values)).unwrap();
        assert_eq!(store.read("table").unwrap().unwrap(), dtype.decode(&dtype.encode(&values)));
        let mut g = Graph::new(gpu.target());
        let table = g.state_typed("table", &[v, d], dtype);
        let of = g.input("ids", &[n], DType::U32);
        let index = GatherIndex::inputs(&mut g, "ids", n, n);
        let y = embedding(&mut g, table, of, index);
        let logp = token_logp(&mut g, y, table, of);
        g.output(y);
        g.output(logp);
        let calls = g.calls().len();
        let program = Program::new(gpu, g, &store).unwrap();
        program.write_u32(of, &ids);
        program.run();
        (program.read_many(&[y, logp]).unwrap(), calls)
    };
    for dtype in [DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0] {
        let (whole, calls) = found(dtype, 128 << 20);
        let stored = dtype.decode(&dtype.encode(&values));
        let rows: Vec<f32> =
            ids.iter().flat_map(|&id| stored[id as usize * d..][..d].to_vec()).collect();
        assert_eq!(whole[0], rows, "{dtype}");
        // A chunk of 128 rows and no more.
        let (parts, more) = found(dtype, dtype.bytes(128 * d).max(4096) + 8);
        assert_eq!(more, calls + 2, "{dtype}");
        assert!(parts == whole, "{dtype}: other bits");
    }
}

#[test]
fn what_cannot_be_cut_is_refused_by_its_name() {
    let target = Target { binding_bytes: 1 << 15, buffer_bytes: 1 << 20, ..gpu().target().clone() };
    let refused = |shape: [usize; 2], dtype: DType| {
        let mut g = Graph::new(&target);
        let table = g.state_typed("table", &shape, dtype);
        let ids = g.input("ids", &[2], DType::U32);
        let index = GatherIndex::inputs(&mut g, "ids", 2, 2);
        embedding(&mut g, table, ids, index);
        g.check_limits().err().map(|e| e.to_string())
    };
    assert_eq!(refused([512, 64], DType::F32), None);
    assert_eq!(refused([512, 64], DType::Q8_0), None);
    let text = refused([8192, 64], DType::F32).unwrap();
    assert!(text.contains("`table` [8192, 64] takes 2.0 MiB in one buffer"), "{text}");
    // 128 rows of it are too much.
    let text = refused([64, 2048], DType::F32).unwrap();
    assert!(text.contains("in one piece, and this adapter binds"), "{text}");
}

/// Every kernel that is told of parts of a table or a gradient, with rows that straddle what it takes at a
/// time.
#[test]
fn every_kernel_knows_parts() {
    let gpu = gpu();
    let (v, d, n) = (300, 22, 9);
    let ids = [0u32, 299, 63, 64, 128, 127, 0, 256, 255];
    let values: Vec<f32> = (0..v * d).map(|i| (i % 97) as f32 * 0.01 - 0.4).collect();
    let arrays = build_index(&ids, n);
    let after = |pinned: &[(&str, u32)], most: u64| -> (Vec<u32>, usize) {
        let pinned =
            pinned.iter().map(|&(pass, number)| (pass.to_owned(), number.into())).collect();
        let target = Target { binding_bytes: most, pinned, ..gpu.target().clone() };
        let store = Store::new(&gpu);
        store.write("table", &[v, d], &values).unwrap();
        let mut g = Graph::new(&target);
        let table = g.parameter("table", &[v, d], Init::Zeros);
        let of = g.input("ids", &[n], DType::U32);
        let index = GatherIndex::inputs(&mut g, "ids", n, n);
        let y = embedding(&mut g, table, of, index);
        g.output(y);
        g.backward_from(&[(y, y)]);
        let hyper = adamw::minimise(&mut g, 0.5);
        let calls = g.calls().len();
        let program = Program::new(&gpu, g, &store).unwrap();
        program.write_u32(of, &ids);
        program.write_u32(index.unique, &arrays.unique);
        program.write_u32(index.offsets, &arrays.offsets);
        program.write_u32(index.list, &arrays.list);
        let mut found = Vec::new();
        for step in 1..3 {
            program.write(hyper, &adamw::hyper(0.1, 0.9, 0.999, 1e-3, 0.1, step));
            program.run();
            found.extend(program.read(y).unwrap());
        }
        found.extend(store.read("table").unwrap().unwrap());
        (found.iter().map(|x| x.to_bits()).collect(), calls)
    };
    for pinned in [
        [("gather_rows.backward", 1), ("grad_norm.partial", 1)],
        [("gather_rows.backward", 2), ("grad_norm.partial", 1)],
        [("gather_rows.backward", 1), ("grad_norm.partial", 2)],
    ] {
        let (whole, calls) = after(&pinned, 1 << 20);
        let (parts, more) = after(&pinned, 12 << 10);
        // Three blocks of 128 rows, four of 2,048 elements, three of 3,072.
        assert_eq!(more, calls + 2 + 2 + 3 + 2, "{pinned:?}");
        let close = |(a, b): (&u32, &u32)| {
            let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
            (a - b).abs() <= 1e-6 * a.abs().max(1e-3)
        };
        // The tree of a workgroup ends with each block, which moves the last bits of the norm.
        let same_bits = pinned[1].1 == 1;
        assert!(whole.iter().zip(&parts).all(close), "{pinned:?}");
        assert!(!same_bits || whole == parts, "{pinned:?}: other bits");
    }
}

/// The plan of Qwen2's smallest model counts its embedding and refuses it nowhere.
#[test]
fn a_model_with_a_large_vocabulary_is_planned() {
    let p = Place::new();
    p.shape("large");
    p.edit("large/config.json", |config| {
        for (key, value) in [("hidden_size", 896), ("vocab_size", 151_936), ("head_dim", 64)] {
            config[key] = value.into();
        }
        config["num_attention_heads"] = 14.into();
    });
    let plan = "plan r.toml --set model=large --set init=random --memory 64";
    let planned = p.run(plan);
    assert_eq!(planned.code, Some(0), "{}", planned.err);
    // Weight, gradient and two moments of 140,733,824 parameters, 136,134,656 of them the embedding's.
    assert!(planned.out.contains("140733824"), "{}", planned.out);
    let state = planned.out.lines().find(|line| line.starts_with("weights, gradients, moments"));
    assert!(state.is_some_and(|line| line.contains("2147.43 MiB")), "{}", planned.out);
}

/// One step of AdamW over a table and head of 151,936 x 896 (519 MiB, four times), against double
/// precision in the rows that occur and some that do not.
#[test]
fn an_embedding_of_half_a_gigabyte_trains() {
    let gpu = gpu();
    let (v, d) = (151_936, 896);
    // 128 MiB hold 36,864 rows, nine chunks of 4,096.
    let ids = [0u32, 36_863, 36_864];
    let targets = [151_935u32, 36_864, 4_096];
    let n = ids.len();
    let value = |row: usize, column: usize| {
        let mixed =
            (row as u32).wrapping_mul(0x9e37_79b9) ^ (column as u32).wrapping_mul(0x85eb_ca6b);
        (mixed.wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 24) as f32 * 0.1 - 0.05
    };
    let store = Store::new(&gpu);
    let mut table = Vec::with_capacity(v * d);
    (0..v).for_each(|row| table.extend((0..d).map(|column| value(row, column))));
    store.write("table", &[v, d], &table).unwrap();
    let mut g = Graph::new(gpu.target());
    let weight = g.parameter("table", &[v, d], Init::Zeros);
    let of = g.input("ids", &[n], DType::U32);
    let index = GatherIndex::inputs(&mut g, "ids", n, n);
    let hidden = embedding(&mut g, weight, of, index);
    let target = g.input("targets", &[n], DType::U32);
    let logp = token_logp(&mut g, hidden, weight, target);
    let weights = g.input("weights", &[n], DType::F32);
    let loss = nll(&mut g, logp, weights);
    g.backward(loss);
    g.output(logp);
    let hyper = adamw::minimise(&mut g, 0.0);
    let program = Program::with_options(&gpu, g, &store, ProgramOptions::default()).unwrap();
    let arrays = build_index(&ids, n);
    program.write_u32(of, &ids);
    program.write_u32(index.unique, &arrays.unique);
    program.write_u32(index.offsets, &arrays.offsets);
    program.write_u32(index.list, &arrays.list);
    program.write_u32(target, &targets);
    program.write(weights, &vec![1.0 / n as f32; n]);
    let (rate, beta1, beta2, eps) = (1e-3, 0.9, 0.999, 1e-6);
    program.write(hyper, &adamw::hyper(rate, beta1, beta2, eps, 0.0, 1));
    program.run();

    // The softmax of each token in double precision.
    let row = |r: usize| &table[r * d..][..d];
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let logits: Vec<Vec<f64>> =
        ids.iter().map(|&id| (0..v).map(|r| dot(row(r), row(id as usize))).collect()).collect();
    let sums: Vec<f64> =
        logits.iter().map(|z| z.iter().map(|z| z.exp()).sum::<f64>().ln()).collect();
    let got = program.read(logp).unwrap();
    for k in 0..n {
        let want = logits[k][targets[k] as usize] - sums[k];
        assert!((f64::from(got[k]) - want).abs() < 1e-5, "{k}: {} is not {want}", got[k]);
    }
    // What the loss is to token k's logit of row r.
    let slope = |k: usize, r: usize| {
        let p = (logits[k][r] - sums[k]).exp();
        (p - f64::from(u8::from(targets[k] as usize == r))) / n as f64
    };
    // The head's part of a row's gradient, and the embedding's.
    let gradient = |r: usize, dh: &[Vec<f64>]| -> Vec<f64> {
        let mut sum = vec![0.0; d];
        for k in 0..n {
            let (s, h) = (slope(k, r), row(ids[k] as usize));
            for (c, sum) in sum.iter_mut().enumerate() {
                *sum += s * f64::from(h[c]) + if ids[k] as usize == r { dh[k][c] } else { 0.0 };
            }
        }
        sum
    };
    let dh: Vec<Vec<f64>> = (0..n)
        .map(|k| {
            let mut sum = vec![0.0; d];
            for r in 0..v {
                let s = slope(k, r);
                sum.iter_mut().zip(row(r)).for_each(|(sum, &w)| *sum += s * f64::from(w));
            }
            sum
        })
        .collect();
    let read = |suffix: &str| store.read(&format!("table{suffix}")).unwrap().unwrap();
    let rows = [0, 1, 4_095, 4_096, 36_863, 36_864, 73_728, 110_591, 110_592, 147_456, 151_935];
    // One of them at a time: each is half a gigabyte.
    let [moments, after] = [FIRST_MOMENT, ""].map(|suffix| {
        let all = read(suffix);
        rows.map(|r| all[r * d..][..d].to_vec())
    });
    for ((r, moment), after) in rows.into_iter().zip(moments).zip(after) {
        let wanted = gradient(r, &dh);
        let size = wanted.iter().map(|g| g * g).sum::<f64>().sqrt();
        let errors = moment.iter().zip(&wanted).map(|(&m, g)| (f64::from(m) - 0.1 * g).powi(2));
        let error = errors.sum::<f64>().sqrt();
        assert!(error < 1e-5 * size, "row {r}: {error} of {size}");
        for c in 0..d {
            let g = f64::from(moment[c]) / 0.1;
            let want = f64::from(row(r)[c]) - rate * g / (g.abs() + eps);
            let got = f64::from(after[c]);
            assert!((got - want).abs() < 1e-6, "row {r}, {c}: {got} is not {want}");
        }
    }
}
