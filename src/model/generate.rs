//! Generation over a cache of keys and values: the prompts are read once, in pieces, and then every
//! step computes one token of each sequence.
//!
//! Two programs share the parameters and the cache: `prompt` takes [`PIECE`] tokens of any of the
//! prompts at a time, `step` one of each sequence. A sequence owns a region of the cache, and a token
//! attends to its own region up to itself, so prompts of any lengths may follow each other in a
//! piece.

use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::graph::{Graph, Role, VarInfo};
use crate::kernel::Target;
use crate::model::blocks::Logits;
use crate::model::config::ModelConfig;
use crate::model::limits::check_tokens;
pub use crate::model::sampling::Sampling;
use crate::model::stream::{BatchInputs, CachedToken, HeadRows};
use crate::plan::{Plan, Reuse, padded, plan};
use crate::program::{Program, ProgramOptions, Store};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;
use std::rc::Rc;

/// Tokens of prompts that are read at a time.
pub const PIECE: usize = 64;

/// Compares prompts and what is to follow them with the `room` in positions there is.
///
/// # Errors
/// Every prompt that is empty, has ids beyond the vocabulary, or does not fit, at once.
pub fn check_prompts(
    prompts: &[Vec<u32>],
    max_tokens: usize,
    room: usize,
    vocab: usize,
) -> Result<()> {
    let mut problems = Vec::new();
    for (i, p) in prompts.iter().enumerate() {
        let place = format!("prompt {}", i + 1);
        if p.is_empty() {
            problems.push(Problem::new(&place, "is empty; write what is to be continued"));
        }
        if p.len().saturating_add(max_tokens) > room {
            let advice = match room.saturating_sub(p.len()) {
                0 => "shorten the prompt".to_owned(),
                left => format!("shorten the prompt, or ask for {left} new tokens at most"),
            };
            problems.push(Problem::new(
                &place,
                format!(
                    "{} tokens and {max_tokens} new ones do not fit {room} positions; {advice}",
                    p.len()
                ),
            ));
        }
        if let Some(id) = p.iter().find(|&&id| id as usize >= vocab) {
            let what = format!(
                "token id {id} is beyond the model's vocabulary of {vocab}; take the tokenizer the model was trained with"
            );
            problems.push(Problem::new(&place, what));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::input("these prompts cannot be continued", problems))
}

/// How much is generated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Sequences at a time.
    pub sequences: usize,
    /// Tokens of a sequence, prompt and continuation together.
    pub length: usize,
}

impl Room {
    /// Refuses a cache that the adapter cannot bind, before a graph is built for it.
    fn check(&self, target: &Target, config: &ModelConfig) -> Result<()> {
        let rows = self.sequences.saturating_mul(self.length);
        check_tokens(target, rows, config.decoder.outline().kv_width, "a cache")
    }
}

/// A graph from tokens to the logits of some of them, over the cache.
struct Forward {
    graph: Graph,
    inputs: BatchInputs,
    head: HeadRows,
    logits: Logits,
}

impl Forward {
    /// `tokens` at a time, and the logits of one of them for each sequence; `g` is empty and trains
    /// nothing.
    fn new(mut g: Graph, config: &ModelConfig, room: Room, tokens: usize) -> Self {
        let inputs = BatchInputs::cached(&mut g, tokens, room.sequences, room.length);
        let head = HeadRows::declare(&mut g, room.sequences, tokens);
        let logits = config.decoder.forward(&mut g, &inputs, &head).logits(&mut g);
        Self { graph: g, inputs, head, logits }
    }
}

/// The memory of a [`Generator`] besides the parameters.
#[derive(Debug, Clone)]
pub struct GeneratorPlan {
    /// The plans of the two programs, of prompts and of steps.
    pub programs: [Plan; 2],
    /// Bytes of the cached keys and values.
    pub cache: u64,
}

/// Plans a [`Generator`] without a device; `empty` gives graphs that train nothing and know how the
/// parameters are stored.
///
/// # Errors
/// [`Error::Limit`] when a tensor or a dispatch is beyond the adapter's limits.
pub fn plan_generator(
    target: &Target,
    config: &ModelConfig,
    room: Room,
    empty: impl Fn() -> Graph,
) -> Result<GeneratorPlan> {
    room.check(target, config)?;
    let graphs =
        [PIECE, room.sequences].map(|tokens| Forward::new(empty(), config, room, tokens).graph);
    graphs.iter().try_for_each(Graph::check_limits)?;
    let programs = [0, 1].map(|i| plan(&graphs[i], Reuse::Pool));
    // State that is no parameter.
    let parameters: HashSet<&str> =
        graphs[0].parameters().iter().map(|p| p.name.as_str()).collect();
    let is_cache =
        |v: &&VarInfo| matches!(v.role, Role::State) && !parameters.contains(v.name.as_str());
    let cache = graphs[0].vars().iter().filter(is_cache).map(|v| padded(v.bytes())).sum();
    Ok(GeneratorPlan { cache, programs })
}

/// A [`Forward`] ready to run.
struct Decode {
    program: Program,
    inputs: BatchInputs,
    head: HeadRows,
    logits: Logits,
}

impl Decode {
    fn new(gpu: &Rc<Gpu>, store: &Store, forward: Forward) -> Result<Self> {
        let Forward { graph, inputs, head, logits } = forward;
        // The programs of a store never run at the same time, and results are read at once.
        let options = ProgramOptions { reuse: Reuse::Pool, ..ProgramOptions::default() };
        let program = Program::with_options(gpu, graph, store, options)?;
        Ok(Self { program, inputs, head, logits })
    }

    /// Puts `tokens` into the cache and returns the logits `[V]` behind each of `ends`, positions in
    /// `tokens`; with none of them nothing is read back.
    fn run(&self, tokens: &[CachedToken], ends: &[usize]) -> Result<Vec<f32>> {
        self.inputs.write_cached(&self.program, tokens);
        let mut rows: Vec<u32> = ends.iter().map(|&at| at as u32).collect();
        rows.resize(self.program.graph().shape(self.head.rows)[0], 0);
        self.head.write(&self.program, &rows);
        self.program.run();
        match ends {
            [] => Ok(Vec::new()),
            _ => self.logits.read(&self.program),
        }
    }
}

/// A sequence that is being continued.
struct Sequence {
    ids: Vec<u32>,
    /// Its first row of the cache.
    start: usize,
    done: bool,
}

impl Sequence {
    fn token(&self, position: usize) -> CachedToken {
        let (position, start) = (position as u32, self.start as u32);
        CachedToken { id: self.ids[position as usize], position, start }
    }
}

/// What hears the tokens of a continuation as they come: the number of its prompt and all its new
/// tokens; false ends it.
pub type Watch<'a> = dyn FnMut(usize, &[u32]) -> Result<bool> + 'a;

/// Nobody listens.
pub fn unwatched(_: usize, _: &[u32]) -> Result<bool> {
    Ok(true)
}

/// What prompts are continued by.
#[derive(Clone, Copy)]
struct Asked<'a> {
    stop: &'a [u32],
    sampling: &'a Sampling,
    known: usize,
}

/// Continues prompts with the parameters in a store.
pub struct Generator {
    prompt: Decode,
    step: Decode,
    room: Room,
    vocab: usize,
    max_positions: usize,
}

impl Generator {
    /// Makes the programs and the cache over the parameters in `store`.
    ///
    /// # Errors
    /// When memory or the adapter's limits do not suffice.
    pub fn new(gpu: &Rc<Gpu>, store: &Store, config: &ModelConfig, room: Room) -> Result<Self> {
        room.check(gpu.target(), config)?;
        let program = |tokens| {
            let forward = Forward::new(store.inference_graph(), config, room, tokens);
            Decode::new(gpu, store, forward)
        };
        Ok(Self {
            prompt: program(PIECE)?,
            step: program(room.sequences)?,
            room,
            vocab: config.vocab_size,
            max_positions: config.max_positions,
        })
    }

    /// Continues every prompt until a token of `stop` or the limit; returns the new tokens,
    /// the stop token apart. `watch` hears the new tokens of a prompt, by its number, each time there
    /// is one more, and may end it.
    ///
    /// # Errors
    /// A prompt that is empty, has ids beyond the vocabulary, or does not fit with its
    /// continuation; logits that are not finite; a lost device; what `watch` says.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        stop: &[u32],
        sampling: &Sampling,
        watch: &mut Watch,
    ) -> Result<Vec<Vec<u32>>> {
        self.check(prompts, sampling)?;
        let mut rng = [ChaCha8Rng::seed_from_u64(sampling.seed)];
        self.continue_all(prompts, Asked { stop, sampling, known: 0 }, &mut rng, watch)
    }

    /// As [`Generator::generate`] with draws of their own for each prompt, which begin at its seed: what
    /// is drawn for one does not depend on the others.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    ///
    /// # Panics
    /// When there are not as many seeds as prompts.
    pub fn generate_each(
        &self,
        prompts: &[Vec<u32>],
        stop: &[u32],
        sampling: &Sampling,
        seeds: &[u64],
        watch: &mut Watch,
    ) -> Result<Vec<Vec<u32>>> {
        assert_eq!(prompts.len(), seeds.len(), "a seed for each prompt");
        self.check(prompts, sampling)?;
        let mut rngs: Vec<_> = seeds.iter().map(|&seed| ChaCha8Rng::seed_from_u64(seed)).collect();
        self.continue_all(prompts, Asked { stop, sampling, known: 0 }, &mut rngs, watch)
    }

    /// As many at a time as there is room for. The draws are those of `rngs`: one for each prompt, or one
    /// for all of them.
    fn continue_all(
        &self,
        prompts: &[Vec<u32>],
        asked: Asked,
        rngs: &mut [ChaCha8Rng],
        watch: &mut Watch,
    ) -> Result<Vec<Vec<u32>>> {
        let mut out = Vec::with_capacity(prompts.len());
        for together in prompts.chunks(self.room.sequences) {
            let first = out.len();
            let mut watch = |i: usize, new: &[u32]| watch(first + i, new);
            let own = if rngs.len() == 1 { 0..1 } else { first..first + together.len() };
            out.extend(self.continue_together(together, asked, &mut rngs[own], &mut watch)?);
        }
        Ok(out)
    }

    /// As [`Generator::generate`] for one prompt whose first `known` tokens are where the last call left
    /// them: they are not computed again. The draws are those of `rng`.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn go_on(
        &self,
        prompt: &[u32],
        known: usize,
        stop: &[u32],
        sampling: &Sampling,
        rng: &mut ChaCha8Rng,
        watch: &mut Watch,
    ) -> Result<Vec<u32>> {
        let prompts = [prompt.to_vec()];
        self.check(&prompts, sampling)?;
        // The logits behind the last token are needed.
        let known = known.min(prompt.len() - 1);
        let asked = Asked { stop, sampling, known };
        let rngs = std::slice::from_mut(rng);
        Ok(self.continue_together(&prompts, asked, rngs, watch)?.remove(0))
    }

    /// The logits `[V]` of the token behind a prompt.
    ///
    /// # Errors
    /// A prompt that is empty, has ids beyond the vocabulary or does not fit; a lost device.
    pub fn logits(&self, prompt: &[u32]) -> Result<Vec<f32>> {
        let prompt = prompt.to_vec();
        self.check(std::slice::from_ref(&prompt), &Sampling::greedy(0))?;
        self.read_prompts(&[Sequence { ids: prompt, start: 0, done: true }], 0)
    }

    fn check(&self, prompts: &[Vec<u32>], sampling: &Sampling) -> Result<()> {
        let room = self.room.length.min(self.max_positions);
        check_prompts(prompts, sampling.max_tokens, room, self.vocab)
    }

    /// The draws are those of `rngs`: one for each sequence, or one for all of them.
    fn continue_together(
        &self,
        prompts: &[Vec<u32>],
        Asked { stop, sampling, known }: Asked,
        rngs: &mut [ChaCha8Rng],
        watch: &mut Watch,
    ) -> Result<Vec<Vec<u32>>> {
        let mut sequences: Vec<Sequence> = prompts
            .iter()
            .enumerate()
            .map(|(i, ids)| Sequence {
                ids: ids.clone(),
                start: i * self.room.length,
                done: sampling.max_tokens == 0,
            })
            .collect();
        let mut logits = self.read_prompts(&sequences, known)?;
        loop {
            for (i, sequence) in sequences.iter_mut().enumerate().filter(|(_, s)| !s.done) {
                let logits = &logits[i * self.vocab..][..self.vocab];
                let own = i % rngs.len();
                let token = sampling.choose(logits, &sequence.ids, &mut rngs[own])?;
                if stop.contains(&token) {
                    sequence.done = true;
                    continue;
                }
                sequence.ids.push(token);
                let new = &sequence.ids[prompts[i].len()..];
                sequence.done = !watch(i, new)? || new.len() == sampling.max_tokens;
            }
            if sequences.iter().all(|s| s.done) {
                break;
            }
            // Those that are done go on with what they have: their place is fixed.
            let last: Vec<CachedToken> =
                sequences.iter().map(|s| s.token(s.ids.len() - 1)).collect();
            logits = self.step.run(&last, &(0..last.len()).collect::<Vec<_>>())?;
        }
        Ok(sequences.iter().zip(prompts).map(|(s, p)| s.ids[p.len()..].to_vec()).collect())
    }

    /// Puts all prompts into the cache, but for the first `known` tokens of each; the logits behind each,
    /// `[sequences, V]`.
    fn read_prompts(&self, sequences: &[Sequence], known: usize) -> Result<Vec<f32>> {
        let tokens: Vec<(usize, CachedToken)> = sequences
            .iter()
            .enumerate()
            .flat_map(|(i, s)| (known..s.ids.len()).map(move |position| (i, s.token(position))))
            .collect();
        let mut out = vec![0.0; sequences.len() * self.vocab];
        for piece in tokens.chunks(PIECE) {
            let ends: Vec<usize> = (0..piece.len())
                .filter(|&at| {
                    let (i, token) = piece[at];
                    token.position as usize + 1 == sequences[i].ids.len()
                })
                .collect();
            let piece_tokens: Vec<CachedToken> = piece.iter().map(|&(_, token)| token).collect();
            let logits = self.prompt.run(&piece_tokens, &ends)?;
            for (row, &at) in ends.iter().enumerate() {
                let (from, to) = (row * self.vocab, piece[at].0 * self.vocab);
                out[to..to + self.vocab].copy_from_slice(&logits[from..from + self.vocab]);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pack::{Capacity, PackedBatch};
    use crate::model::weights::{FolderWeights, ParameterValues};
    use crate::ops::case::tests::gpu;
    use rand::RngExt;
    use std::path::Path;

    fn model(gpu: &Rc<Gpu>, name: &str) -> (ModelConfig, Store) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let config = ModelConfig::load(&folder).unwrap();
        let store = Store::new(gpu);
        let weights = FolderWeights::open(&folder, &config).unwrap();
        weights.each(&mut |name, shape, values| store.write(name, shape, values)).unwrap();
        (config, store)
    }

    fn random_ids(n: usize, config: &ModelConfig) -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        (0..n).map(|_| rng.random_range(0..config.vocab_size as u32)).collect()
    }

    /// Logits `[T, V]` of every position, all computed in one run without a cache.
    fn whole(gpu: &Rc<Gpu>, config: &ModelConfig, store: &Store, ids: &[u32]) -> Vec<f32> {
        let n = ids.len();
        let mut g = Graph::new(gpu.target());
        let inputs = BatchInputs::declare(&mut g, n);
        let head = HeadRows::declare(&mut g, n, n);
        let logits = config.decoder.forward(&mut g, &inputs, &head).logits(&mut g);
        let program = Program::new(gpu, g, store).unwrap();
        let mut stream = PackedBatch::empty(Capacity { tokens: n, targets: 0, pairs: 0 });
        stream.tokens.copy_from_slice(ids);
        stream.position = (0..n as u32).collect();
        stream.spans = [0, 0, 0, n as u32].repeat(n);
        inputs.write(&program, &stream);
        head.write(&program, &stream.position);
        program.run();
        logits.read(&program).unwrap()
    }

    /// Prompts of awkward lengths one behind the other in the pieces, then token by token to the
    /// last position: at every position the logits are those of one run over everything.
    fn cached_logits_are_those_of_one_run(name: &str) {
        let gpu = gpu();
        let (config, store) = model(&gpu, name);
        let length = config.max_positions.min(PIECE + 20);
        let room = Room { sequences: 4, length };
        let generator = Generator::new(&gpu, &store, &config, room).unwrap();
        let read = [1, PIECE - 1, PIECE, PIECE + 1].map(|n| n.min(length));
        let mut sequences: Vec<Sequence> = (0..4)
            .map(|i| Sequence {
                ids: random_ids(length + i, &config)[i..][..read[i]].to_vec(),
                start: i * length,
                done: false,
            })
            .collect();
        let full: Vec<Vec<u32>> =
            (0..4).map(|i| random_ids(length + i, &config)[i..].to_vec()).collect();
        let want: Vec<Vec<f32>> =
            full.iter().map(|ids| whole(&gpu, &config, &store, ids)).collect();
        let v = config.vocab_size;
        let compare = |got: &[f32], sequences: &[Sequence]| {
            for (i, s) in sequences.iter().enumerate() {
                let want = &want[i][(s.ids.len() - 1) * v..][..v];
                let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                let worst =
                    want.iter().zip(&got[i * v..]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(worst <= 1e-5 * largest, "{name} {i} at {}: {worst}", s.ids.len());
            }
        };
        compare(&generator.read_prompts(&sequences, 0).unwrap(), &sequences);
        while sequences.iter().any(|s| s.ids.len() < length) {
            for (s, full) in sequences.iter_mut().zip(&full) {
                if s.ids.len() < length {
                    s.ids.push(full[s.ids.len()]);
                }
            }
            let last: Vec<CachedToken> =
                sequences.iter().map(|s| s.token(s.ids.len() - 1)).collect();
            compare(&generator.step.run(&last, &[0, 1, 2, 3]).unwrap(), &sequences);
        }
    }

    #[test]
    fn cached_logits_of_llama() {
        cached_logits_are_those_of_one_run("llama_overfit");
    }

    #[test]
    fn cached_logits_of_learned_positions() {
        cached_logits_are_those_of_one_run("gpt2");
        cached_logits_are_those_of_one_run("opt");
    }

    #[test]
    fn cached_logits_of_a_window() {
        cached_logits_are_those_of_one_run("mistral_window");
    }

    #[test]
    fn cached_logits_of_head_norms() {
        cached_logits_are_those_of_one_run("qwen3_tied");
    }

    /// A conversation that goes on computes what is new, and says what it would say anew.
    #[test]
    fn going_on_is_beginning_anew() {
        let gpu = gpu();
        let (config, store) = model(&gpu, "llama_overfit");
        let room = Room { sequences: 1, length: config.max_positions.min(PIECE + 20) };
        let [once, again] = [0, 1].map(|_| Generator::new(&gpu, &store, &config, room).unwrap());
        let sampling = Sampling { temperature: 1.0, ..Sampling::greedy(4) };
        let mut ids = random_ids(5, &config);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut known = 0;
        for _ in 0..3 {
            let mut same = rng.clone();
            let mut heard = Vec::new();
            let mut watch = |_: usize, new: &[u32]| {
                heard = new.to_vec();
                Ok(new.len() < 3)
            };
            let new = once.go_on(&ids, known, &[], &sampling, &mut rng, &mut watch).unwrap();
            assert_eq!((new.len(), &heard), (3, &new));
            let mut watch = |_: usize, new: &[u32]| Ok(new.len() < 3);
            let anew = again.go_on(&ids, 0, &[], &sampling, &mut same, &mut watch).unwrap();
            assert_eq!(new, anew);
            // The last token was chosen and not yet computed.
            known = ids.len() + new.len() - 1;
            ids.extend(new);
            ids.extend(random_ids(7, &config));
        }
    }

    #[test]
    fn cached_logits_of_scaled_rope() {
        cached_logits_are_those_of_one_run("llama_rope_yarn");
    }

    #[test]
    fn cached_logits_of_layers_that_differ() {
        cached_logits_are_those_of_one_run("smollm3");
        cached_logits_are_those_of_one_run("phi3");
        cached_logits_are_those_of_one_run("gemma2");
        cached_logits_are_those_of_one_run("gemma3_text");
    }

    /// What a diverged model says is no text, whichever of the prompts it is asked to continue.
    #[test]
    fn a_model_that_diverged_continues_nothing() {
        let gpu = gpu();
        let (config, store) = model(&gpu, "llama_overfit");
        let norm = &config.parameters().last().unwrap();
        assert_eq!(norm.name, "model.norm.weight");
        store.write(&norm.name, &norm.shape, &vec![f32::NAN; norm.len()]).unwrap();
        let room = Room { sequences: 2, length: 8 };
        let generator = Generator::new(&gpu, &store, &config, room).unwrap();
        let sampling = Sampling::greedy(2);
        let error =
            generator.generate(&[vec![3], vec![4, 5]], &[], &sampling, &mut unwatched).unwrap_err();
        assert!(matches!(error, Error::NonFinite(_)), "{error}");
    }

    #[test]
    fn logits_that_are_not_finite_are_refused() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for bad in [f32::NAN, f32::INFINITY] {
            let error = Sampling::greedy(1)
                .choose(&[0.0, bad, 1.0], &[], &mut rng)
                .unwrap_err()
                .to_string();
            assert!(error.contains("token 1"), "{error}");
        }
        assert_eq!(Sampling::greedy(1).choose(&[0.0, 3.0, 1.0], &[], &mut rng).unwrap(), 1);
    }
}
