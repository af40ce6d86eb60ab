use super::*;
use crate::data::example::{Example, Sequence};
use crate::data::pack::{Capacity, pack};
use crate::model::folder::save_model_folder;
use crate::model::weights::{Tensor, init_weights};
use crate::ops::case::tests::gpu;
use crate::train::learner::LearnerOptions;
use crate::train::objectives::Loss;
use crate::train::program::Placement;
use crate::train::program::train_all;
use crate::train::recipe::OptimSettings;
use std::rc::Rc;

const NORM: &str = "model.norm.weight";

/// A small model after one step, and where it is written.
struct Run {
    dir: tempfile::TempDir,
    start: BTreeMap<String, Tensor>,
    learner: Learner,
}

/// One step over the parameters in `trained`.
fn run(trained: TrainedSet, rate: f64) -> Run {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama_tied");
    let config = ModelConfig::load(&folder).unwrap();
    let start = init_weights(&config, 1);
    let side = |ids: [u32; 4]| Sequence { ids: ids.into(), response_start: 2 };
    let example = Example {
        row: 0,
        chosen: side([7, 8, 9, 10]),
        rejected: Some(side([7, 8, 11, 12])),
        desirable: None,
    };
    let capacity = Capacity { tokens: 16, targets: 16, pairs: 1 };
    let stream = pack(&[&example], capacity).unwrap().remove(0);
    let loss = Loss::default();
    let objective = &*loss.objective;
    let (optim, options) = (
        OptimSettings::new(1e-3),
        LearnerOptions { placement: Placement::of(trained), ..LearnerOptions::default() },
    );
    let mut learner =
        Learner::with_options(&gpu(), &config, &start, capacity, objective, &optim, &options)
            .unwrap();
    let coefficients = objective.coefficients(&[&stream], 1).remove(0);
    learner.accumulate(&stream, &coefficients).unwrap();
    learner.update(rate).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str| learner.read(name);
    save_model_folder(&dir.path().join("model"), None, None, &config, &read).unwrap();
    Run { dir, start, learner }
}

impl Run {
    fn prove(&self, trained: TrainedSet, trains: bool) -> Result<Proof> {
        self.claim(&trained, trains, "")
    }

    fn claim(&self, trained: &TrainedSet, trains: bool, start_hash: &str) -> Result<Proof> {
        let records = [(0, 2.0), (1, 1.5)].map(|(step, loss)| {
            MetricsRecord::new(Split::Eval, step, 0.0, &[("loss", loss)])
                .with("tokens_per_second", 1.0)
        });
        Claim {
            learner: &self.learner,
            trained,
            steps: 1,
            trains,
            start: &self.start,
            start_hash,
            model: &self.dir.path().join("model"),
            records: &records,
        }
        .prove()
    }
}

fn all_but_the_norm() -> TrainedSet {
    Rc::new(|name| name != NORM)
}

#[test]
fn a_run_that_trained() {
    let run = run(train_all(), 1e-2);
    let proof = run.prove(train_all(), true).unwrap();
    assert_eq!(proof.parameters.len(), run.learner.config.parameters().len());
    assert!(proof.parameters.iter().all(|c| c.trained && c.had_gradients && c.change > 0.0));
    let lines = proof.lines();
    assert!(lines[0].starts_with("trained: all "), "{lines:?}");
    assert_eq!(lines[1], "held out: loss 2.0000 -> 1.5000");
    assert!(lines[2].contains(&proof.model_blake3), "{lines:?}");
    // What changed, by hand.
    let now = run.learner.read(NORM).unwrap();
    let before = &run.start[NORM].data;
    let added: f64 =
        now.iter().zip(before).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let norm = proof.parameters.iter().find(|c| c.name == NORM).unwrap();
    assert!((norm.change - added.sqrt()).abs() < 1e-12);
    // The norm starts as ones.
    assert!((norm.relative.unwrap() - (added / now.len() as f64).sqrt()).abs() < 1e-12);

    proof.write(run.dir.path()).unwrap();
    let text = std::fs::read_to_string(run.dir.path().join(PROOF)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["held_out_after"], serde_json::json!({ "loss": 1.5 }));
    assert_eq!(json["model_blake3"], proof.model_blake3);

    assert_eq!(run.claim(&train_all(), true, &proof.start_blake3).unwrap(), proof);
    let other = run.claim(&train_all(), true, "another").unwrap_err();
    assert!(matches!(other, Error::Mismatch(_)), "{other}");
}

#[test]
fn a_parameter_that_trains_without_being_meant_to_and_the_reverse() {
    let left_out = run(all_but_the_norm(), 1e-2);
    let error = left_out.prove(train_all(), true).unwrap_err().to_string();
    assert!(error.contains("model.norm.weight: should train, but never had"), "{error}");
    assert_eq!(error.lines().count(), 2, "the others are right: {error}");
    let proof = left_out.prove(all_but_the_norm(), true).unwrap();
    let norm = proof.parameters.iter().find(|c| c.name == NORM).unwrap();
    assert_eq!((norm.trained, norm.changed_values, norm.change), (false, 0, 0.0));

    let error = run(train_all(), 1e-2).prove(all_but_the_norm(), true).unwrap_err().to_string();
    assert!(error.contains("model.norm.weight: should not train, but has changed"), "{error}");
}

#[test]
fn a_rate_of_zero_trains_nothing_and_says_so() {
    let run = run(train_all(), 0.0);
    let error = run.prove(train_all(), true).unwrap_err().to_string();
    assert!(error.contains("optim.learning_rate is too small"), "{error}");
    let lines = run.prove(train_all(), false).unwrap().lines();
    assert!(lines[0].starts_with("nothing was trained"), "{lines:?}");
}

#[test]
fn a_written_file_that_is_damaged() {
    let run = run(train_all(), 1e-2);
    let path = run.dir.path().join("model/model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    // The lowest bit of the last value.
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = run.prove(train_all(), true).unwrap_err().to_string();
    assert!(error.contains("reads back with 1 of") && error.contains("model."), "{error}");
    std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();
    run.prove(train_all(), true).unwrap_err();
    std::fs::write(&path, &whole).unwrap();
    run.prove(train_all(), true).unwrap();
}
