//! A decoder of one layer, trained to continue a sequence.
//!
//! `cargo run --example decoder_step --no-default-features`

use oddgrad::ops::{adamw, add::add, attention, embedding::embedding, gather_index::GatherIndex};
use oddgrad::ops::{matmul::linear, nll::nll, rms_norm::rms_norm, rope, silu_mul::silu_mul};
use oddgrad::{DType, Gpu, Graph, Init, Program, Result, Store, ops::token_logp::token_logp};

fn main() -> Result<()> {
    let gpu = std::rc::Rc::new(Gpu::open(&Default::default())?);
    let mut g = Graph::new(gpu.target());
    // Tokens, vocabulary, width, width of the MLP, width of a head.
    let [t, v, d, f, head_dim] = [12, 16, 32, 64, 16];
    let [tokens, targets] = ["tokens", "targets"].map(|name| g.input(name, &[t], DType::U32));
    let index = GatherIndex::inputs(&mut g, "tokens", t, t);
    let mean = g.constant("1 / T", &[t], &vec![1.0 / t as f32; t]);
    let position = g.constant_u32("position", &[t], &(0..t as u32).collect::<Vec<_>>());
    let causal = attention::causal_spans(&[0, 0, 0, t as u32].repeat(t)); // a query sees keys 0 to itself
    let spans = g.constant_u32("spans", &[2 * t, 4], &causal);
    let angles = rope::rope_table(t, &rope::rope_frequencies(head_dim, 10_000.0), 1.0);
    let angles = g.constant("angles", &[t, head_dim / 2, 2], &angles);
    let small = Init::Normal(0.2);
    let table = g.parameter("embedding", &[v, d], small);
    let [wq, wk, wv, wo] = ["q", "k", "v", "o"].map(|name| g.parameter(name, &[d, d], small));
    let [wgate, wup] = ["gate", "up"].map(|name| g.parameter(name, &[f, d], small));
    let wdown = g.parameter("down", &[d, f], small);
    let norms = ["norm 1", "norm 2", "norm 3"].map(|name| g.parameter(name, &[d], Init::Ones));

    let mut x = embedding(&mut g, table, tokens, index);
    let h = rms_norm(&mut g, x, norms[0], 1e-6);
    let [q, k, v] = [wq, wk, wv].map(|weight| linear(&mut g, h, weight, None));
    let [q, k] = [q, k].map(|x| rope::rope(&mut g, x, position, angles, head_dim));
    let h = attention::attention(&mut g, q, k, v, spans, head_dim);
    let h = linear(&mut g, h, wo, None);
    x = add(&mut g, x, h);

    let h = rms_norm(&mut g, x, norms[1], 1e-6);
    let [gate, up] = [wgate, wup].map(|weight| linear(&mut g, h, weight, None));
    let h = silu_mul(&mut g, gate, up);
    let h = linear(&mut g, h, wdown, None);
    x = add(&mut g, x, h);
    let h = rms_norm(&mut g, x, norms[2], 1e-6);
    let logp = token_logp(&mut g, h, table, targets); // the embedding is the head too
    let loss = nll(&mut g, logp, mean);
    g.output(loss);
    g.backward(loss);
    let hyper = adamw::minimise(&mut g, 1.0);

    let store = Store::new(&gpu);
    let mut rng = fastrand::Rng::with_seed(1);
    for p in g.parameters() {
        let value = |_| if p.init == small { 0.6 * (rng.f32() - 0.5) } else { 1.0 };
        store.write(&p.name, &p.shape, &(0..p.len()).map(value).collect::<Vec<_>>())?;
    }
    let program = Program::new(&gpu, g, &store)?;
    let sequence = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9];
    program.write_u32(tokens, &sequence[..t]);
    program.write_u32(targets, &sequence[1..]);
    for (input, values) in index.values(program.graph(), &sequence[..t]) {
        program.write_u32(input, &values);
    }
    for n in 1..=20 {
        program.write(hyper, &adamw::hyper(0.02, 0.9, 0.999, 1e-8, 0.0, n));
        program.run();
        println!("step {n}: loss {:.4}", program.read(loss)?[0]);
    }
    assert!(program.read(loss)?[0] < 0.2, "the sequence was not learnt");
    Ok(())
}
