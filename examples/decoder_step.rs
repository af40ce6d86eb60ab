//! A decoder of one layer, trained to continue a sequence.
//!
//! `cargo run --example decoder_step --no-default-features`

use oddgrad::ops::{adamw, add::add, attention, embedding::embedding, gather_index::GatherIndex};
use oddgrad::ops::{matmul::linear, nll::nll, rms_norm::rms_norm, rope, silu_mul::silu_mul};
use oddgrad::{DType, Gpu, Graph, Result, Step, Store, ops::token_logp::token_logp};
use std::rc::Rc;

fn main() -> Result<()> {
    let gpu = Rc::new(Gpu::open(&Default::default())?);
    let mut g = Graph::new(gpu.target());
    // Tokens, vocabulary, width, width of the MLP, width of a head.
    let [t, v, d, f, head_dim] = [12, 16, 32, 64, 16];
    let [tokens, targets, position] =
        ["tokens", "targets", "position"].map(|name| g.input(name, &[t], DType::U32));
    let spans = g.input("spans", &[t, 4], DType::U32);
    let index = GatherIndex::inputs(&mut g, "tokens", t, t);
    let mean = g.constant("1 / T", &[t], &vec![1.0 / t as f32; t]);
    let angles = rope::rope_table(t, head_dim, 10_000.0);
    let angles = g.constant("angles", &[t, head_dim / 2, 2], &angles);

    let table = g.param("embedding", &[v, d]);
    let [wq, wk, wv, wo] = ["q", "k", "v", "o"].map(|name| g.param(name, &[d, d]));
    let [wgate, wup] = ["gate", "up"].map(|name| g.param(name, &[f, d]));
    let wdown = g.param("down", &[d, f]);
    let norms = ["norm 1", "norm 2", "norm 3"].map(|name| g.param(name, &[d]));

    let mut x = embedding(&mut g, table, tokens, index);
    let h = rms_norm(&mut g, x, norms[0], 1e-6);
    let [q, k, v] = [wq, wk, wv].map(|weight| linear(&mut g, h, weight, None));
    let [q, k] = [q, k].map(|x| rope::rope(&mut g, x, position, angles, head_dim));
    let options = attention::Attention { head_dim, window: None };
    let h = attention::attention(&mut g, q, k, v, spans, options);
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
    let parameters = [&[table, wq, wk, wv, wo, wgate, wup, wdown], &norms[..]].concat();
    let hyper = adamw::minimise(&mut g, &parameters, 1.0);

    let store = Store::new(&gpu);
    let mut rng = fastrand::Rng::with_seed(1);
    for info in parameters.iter().map(|&p| g.info(p)) {
        let is_norm = info.shape.len() == 1;
        let value = |_| if is_norm { 1.0 } else { 0.6 * (rng.f32() - 0.5) };
        store.write(&info.name, &info.shape, &(0..info.len()).map(value).collect::<Vec<_>>())?;
    }
    let step = Step::new(&gpu, g, &store)?;
    let sequence = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9];
    step.write_u32(tokens, &sequence[..t]);
    step.write_u32(targets, &sequence[1..]);
    step.write_u32(position, &(0..t as u32).collect::<Vec<_>>());
    step.write_u32(spans, &[0, 0, 0, t as u32].repeat(t)); // causal: keys 0 to the query itself
    for (input, values) in index.values(step.graph(), &sequence[..t]) {
        step.write_u32(input, &values);
    }
    for n in 1..=60 {
        step.write(hyper, &adamw::hyper(0.01, 0.9, 0.999, 1e-8, 0.0, n));
        step.run();
        if n % 20 == 1 {
            println!("step {n}: loss {:.4}", step.read(loss)?[0]);
        }
    }
    assert!(step.read(loss)?[0] < 0.1, "the sequence was not learnt");
    Ok(())
}
