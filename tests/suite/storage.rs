//! Storage types of variables, kernels chosen by what a call is like, memory shared by programs,
//! planning of deep graphs.

use crate::gpu;
use oddgrad::graph::{DType, Graph, Var};
use oddgrad::kernel::{Class, Target};
use oddgrad::ops::gelu::gelu;
use oddgrad::ops::matmul::linear;
use oddgrad::ops::scale::scale;
use oddgrad::plan::{Pool, Reuse, plan};
use oddgrad::program::{Program, ProgramOptions, Store};

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (0.7 * i as f32).sin()).collect()
}

#[test]
fn state_is_kept_as_it_is_stored_and_read_as_floats() {
    let gpu = gpu();
    let store = Store::new(&gpu);
    let before = gpu.buffer_bytes();
    for (name, dtype) in [("half", DType::F16), ("brain", DType::BF16), ("single", DType::F32)] {
        let bytes = dtype.encode(&values(21));
        store.write_bytes(name, &[7, 3], dtype, &bytes).unwrap();
        assert_eq!(store.read(name).unwrap().unwrap(), dtype.decode(&bytes), "{name}");
        assert_eq!(store.dtype(name), Some(dtype));
    }
    assert_eq!(gpu.buffer_bytes() - before, 44 + 44 + 84, "half the bytes, in whole words");
    // Floats are rounded into what is there.
    store.write("half", &[7, 3], &[1.0 + 1e-4; 21]).unwrap();
    assert_eq!(store.read("half").unwrap().unwrap(), [1.0; 21]);
}

/// What is larger than a read-back stands in memory a part at a time.
#[test]
fn a_large_state_is_looked_at_in_pieces() {
    let store = Store::new(&gpu());
    let large: Vec<f32> = (0..9 << 20).map(|i| i as f32).collect();
    store.write("large", &[large.len()], &large).unwrap();
    let (mut lengths, mut seen) = (Vec::new(), Vec::new());
    let found = store.read_in_pieces("large", &mut |piece| {
        lengths.push(piece.len());
        seen.extend_from_slice(piece);
    });
    assert!(found.unwrap());
    assert_eq!(lengths, [8 << 20, 1 << 20]);
    assert!(seen == large && store.read("large").unwrap().unwrap() == large);
    assert!(!store.read_in_pieces("none", &mut |_| panic!("there is nothing")).unwrap());
}

#[test]
#[should_panic(expected = "state w is something else in another program")]
fn two_programs_agree_on_how_state_is_stored() {
    let gpu = gpu();
    let store = Store::new(&gpu);
    store.write("w", &[4, 4], &[0.0; 16]).unwrap();
    let mut g = Graph::new(gpu.target());
    let x = g.input("x", &[1, 4], DType::F32);
    let w = g.state_typed("w", &[4, 4], DType::BF16);
    linear(&mut g, x, w, None);
    let _ = Program::new(&gpu, g, &store);
}

/// A narrow weight is the same numbers as what it decodes to: products differ in the last bits only,
/// where a compiler fuses other multiplications and additions.
#[test]
fn a_narrow_weight_is_decoded_without_loss() {
    let gpu = gpu();
    let (n, k) = (12, 20);
    for dtype in [DType::F16, DType::BF16] {
        let stored = dtype.encode(&values(n * k));
        let wide = dtype.decode(&stored);
        let run = |as_stored: DType| -> Vec<f32> {
            let store = Store::new(&gpu);
            match as_stored {
                DType::F32 => store.write("w", &[n, k], &wide).unwrap(),
                _ => store.write_bytes("w", &[n, k], as_stored, &stored).unwrap(),
            }
            let mut g = Graph::new(gpu.target());
            let x = g.input("x", &[3, k], DType::F32);
            let w = g.state_typed("w", &[n, k], as_stored);
            let y = linear(&mut g, x, w, None);
            g.output(y);
            let program = Program::new(&gpu, g, &store).unwrap();
            program.write(x, &values(3 * k));
            program.run();
            program.read(y).unwrap()
        };
        for (narrow, wide) in run(dtype).into_iter().zip(run(DType::F32)) {
            assert!((narrow - wide).abs() < 1e-5, "{dtype}: {narrow} instead of {wide}");
        }
    }
}

#[test]
#[should_panic(expected = "scale.forward has no kernel for `w` [4] as bf16")]
fn an_operation_without_a_kernel_for_a_type_says_so_when_it_is_built() {
    let mut g = Graph::new(&Target::baseline(Class::Software));
    let w = g.state_typed("w", &[4], DType::BF16);
    scale(&mut g, w, 2.0);
}

#[test]
fn a_pinned_kernel_that_cannot_take_a_call_leaves_it_to_another_and_says_so() {
    let mut target = Target::baseline(Class::Discrete);
    target.pinned.insert("matmul.nt".into(), 7.into());
    let number = |k: usize| {
        let mut g = Graph::new(&target);
        let x = g.input("x", &[8, k], DType::F32);
        let w = g.input("w", &[8, k], DType::F32);
        for _ in 0..2 {
            linear(&mut g, x, w, None);
        }
        let notes: Vec<String> = g.notes().map(str::to_owned).collect();
        (g.calls()[0].variant.number(), notes)
    };
    assert_eq!(number(8), (7, Vec::new()));
    let (used, notes) = number(7);
    let [note] = notes.as_slice() else { panic!("once: {notes:?}") };
    assert_eq!(used, 3);
    assert!(note.contains("matmul.nt=7") && note.contains("3 register_tile"), "{note}");
}

#[test]
fn programs_of_one_store_share_a_pool_of_slots() {
    let gpu = gpu();
    let build = |sizes: &[usize]| {
        let mut g = Graph::new(gpu.target());
        let x = g.input("x", &[*sizes.iter().max().unwrap()], DType::F32);
        let mut outs = Vec::new();
        for &n in sizes {
            let part = g.rows(x, 0, n);
            let y = scale(&mut g, part, n as f32);
            outs.push(g.output(y));
        }
        (g, x, outs)
    };
    let programs = [&[300, 100][..], &[200, 200], &[50]];
    let plans = programs.map(|sizes| plan(&build(sizes).0, Reuse::Pool));
    let mut pool = Pool::default();
    plans.iter().for_each(|p| drop(pool.assign(&p.slots)));
    // The second program takes the 300 for one 200 and needs another; the third needs nothing.
    assert_eq!(pool.sizes(), [1200, 400, 800]);

    let before = gpu.buffer_bytes();
    let store = Store::new(&gpu);
    let options = ProgramOptions { reuse: Reuse::Pool, ..ProgramOptions::default() };
    let steps: Vec<(Program, Var, Vec<Var>)> = programs
        .iter()
        .map(|sizes| {
            let (g, x, outs) = build(sizes);
            (Program::with_options(&gpu, g, &store, options).unwrap(), x, outs)
        })
        .collect();
    let staging: u64 = steps.iter().map(|(s, ..)| s.staging_bytes()).sum();
    let inputs: u64 = plans.iter().map(|p| p.inputs).sum();
    let planned = pool.sizes().iter().sum::<u64>() + inputs;
    assert_eq!(gpu.buffer_bytes() - before - staging, planned);
    for (program, x, _) in &steps {
        program.write(*x, &vec![1.0; program.graph().info(*x).len()]);
    }
    for round in 0..2 {
        for ((program, _, outs), sizes) in steps.iter().zip(&programs) {
            program.run();
            for (out, &n) in program.read_many(outs).unwrap().iter().zip(*sizes) {
                assert_eq!(*out, vec![n as f32; n], "round {round}");
            }
        }
    }
}

/// A chain of 60,000 operations whose inputs all live until the derivative: as many slots as there
/// are operations. Looking at every slot for every temporary would be billions of looks.
#[test]
fn planning_does_not_grow_with_the_square_of_the_depth() {
    let mut g = Graph::new(&Target::baseline(Class::Software));
    let x = g.input_with_grad("x", &[1]);
    let mut y = x;
    for _ in 0..60_000 {
        y = gelu(&mut g, y);
    }
    g.backward(y);
    let start = std::time::Instant::now();
    let shared = plan(&g, Reuse::Slots);
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    // Each slot has one value on the way up and is free for a gradient on the way down.
    assert!(shared.slots.len() <= 60_003, "{}", shared.slots.len());
    assert!(shared.slots.len() >= 60_000);
    check_no_overlap(&g, &shared.slot_of);
}

/// No two temporaries of one slot are alive at once.
fn check_no_overlap(g: &Graph, slot_of: &[Option<usize>]) {
    let mut life = vec![None; g.vars().len()];
    for (i, call) in g.calls().iter().enumerate() {
        for &v in call.reads.iter().chain(&call.writes) {
            life[g.base(v).index()].get_or_insert((i, i)).1 = i;
        }
    }
    let mut by_slot: std::collections::BTreeMap<usize, Vec<(usize, usize)>> = Default::default();
    for (i, slot) in slot_of.iter().enumerate() {
        if let Some(slot) = slot {
            by_slot.entry(*slot).or_default().push(life[i].unwrap());
        }
    }
    for lives in by_slot.values_mut() {
        lives.sort_unstable();
        assert!(lives.windows(2).all(|w| w[0].1 < w[1].0), "{lives:?}");
    }
}

#[test]
fn temporaries_of_many_sizes_share_slots_without_meeting() {
    let mut g = Graph::new(&Target::baseline(Class::Software));
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    let mut alive: Vec<Var> = vec![g.input("x", &[1024], DType::F32)];
    for _ in 0..500 {
        let from = alive[random(alive.len())];
        let n = 64 * (1 + random(1 + g.info(from).len() / 64)).min(g.info(from).len() / 64).max(1);
        let part = if g.info(from).len() > n { g.rows(from, 0, n) } else { from };
        let y = scale(&mut g, part, 2.0);
        alive.push(y);
        if alive.len() > 8 {
            alive.remove(1 + random(7));
        }
    }
    let shared = plan(&g, Reuse::Slots);
    check_no_overlap(&g, &shared.slot_of);
    assert!(shared.temporaries() < shared.unshared / 10, "{shared:?}");
    for (info, slot) in g.vars().iter().zip(&shared.slot_of) {
        assert!(slot.is_none_or(|s| shared.slots[s] >= info.bytes()));
    }
}
