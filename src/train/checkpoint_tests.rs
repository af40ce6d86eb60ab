use super::*;
use crate::model::weights::init_weights;
use crate::model::weights::tests::{all_equal, tiny};

fn state(step: u64) -> TrainState {
    TrainState {
        step,
        epoch: 1,
        batch_in_epoch: 3,
        seed: u64::MAX,
        num_tokens: 1 << 40,
        row_order_hash: "order".into(),
        recipe_hash: "recipe".into(),
        kernels_hash: "kernels".into(),
    }
}

/// A run folder with one checkpoint per step.
fn run(steps: &[u64]) -> (tempfile::TempDir, BTreeMap<String, Tensor>, Moments) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(true);
    let weights = init_weights(&config, 5);
    let moments = Moments { m: init_weights(&config, 6), v: init_weights(&config, 7) };
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    for &step in steps {
        let run = dir.path().join("run");
        let folder =
            write(&run, &state(step), Some(dir.path()), &config, &weights, &moments).unwrap();
        assert_eq!(folder, folder_of(&run, step));
    }
    (dir, weights, moments)
}

#[test]
fn comes_back_bit_for_bit() {
    let (dir, weights, moments) = run(&[50]);
    let folder = dir.path().join("run/checkpoint-00000050");
    let read = read(&folder).unwrap();
    assert_eq!(read.state, state(50));
    assert!(all_equal(&read.weights, &weights));
    assert!(all_equal(&read.moments.m, &moments.m) && all_equal(&read.moments.v, &moments.v));
    assert_eq!(read.config.parameters(), tiny(true).parameters());
    assert!(folder.join("tokenizer.json").exists());
    // It is a model folder by itself.
    assert!(all_equal(
        &read_weights(&folder, &ModelConfig::load(&folder).unwrap()).unwrap(),
        &weights
    ));

    let config = tiny(true);
    let again =
        write(&dir.path().join("run"), &state(50), None, &config, &weights, &moments).unwrap_err();
    assert!(again.to_string().contains("exists already"), "{again}");
}

/// Earlier versions wrote a position of a random generator, which no run has.
#[test]
fn a_checkpoint_of_an_earlier_version_is_read() {
    let (dir, ..) = run(&[3]);
    let folder = dir.path().join("run/checkpoint-00000003");
    let path = folder.join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("rng_position"), "{text}");
    let old = text.replace("\"num_tokens\"", "\"rng_position\": 77,\n    \"num_tokens\"");
    assert_ne!(old, text);
    fs::write(&path, old).unwrap();
    assert_eq!(read(&folder).unwrap().state, state(3));
}

#[test]
fn damaged_ones_are_passed_over() {
    let (dir, ..) = run(&[9, 10, 100_000_000, 12]);
    let run = dir.path().join("run");
    let newest = |run: &Path| latest(run).unwrap();
    assert_eq!(newest(&run).folder, Some(folder_of(&run, 100_000_000)));

    // One flipped bit, at the same length.
    let weights = folder_of(&run, 100_000_000).join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    // A file cut short, and a missing state.
    let optimizer = folder_of(&run, 12).join("optimizer.safetensors");
    let bytes = fs::read(&optimizer).unwrap();
    fs::write(&optimizer, &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(folder_of(&run, 10).join("state.json")).unwrap();
    fs::create_dir(run.join("checkpoint-best")).unwrap();
    fs::create_dir(run.join(".checkpoint-00000999.partial")).unwrap();

    let found = newest(&run);
    assert_eq!(found.folder, Some(folder_of(&run, 9)));
    assert_eq!(found.skipped.len(), 3, "{found:?}");
    assert!(found.skipped[0].what.contains("model.safetensors: is torn"), "{found:?}");
    assert!(found.skipped[1].what.contains("optimizer.safetensors: is torn"), "{found:?}");
    assert!(found.skipped[2].what.contains("state.json"), "{found:?}");
    assert!(read(&folder_of(&run, 12)).is_err());
    fs::remove_dir_all(folder_of(&run, 9)).unwrap();
    assert_eq!(newest(&run).folder, None);
    assert!(latest(&dir.path().join("absent")).is_err());
}

#[test]
fn only_the_newest_stay() {
    let (dir, ..) = run(&[1, 2, 3, 4]);
    let run = dir.path().join("run");
    fs::create_dir(run.join("checkpoint-mine")).unwrap();
    fs::create_dir(run.join(".checkpoint-00000007.partial")).unwrap();
    prune(&run, 2).unwrap();
    let steps = |run: &Path| list(run).unwrap().into_iter().map(|(s, _)| s).collect::<Vec<_>>();
    assert_eq!(steps(&run), [3, 4]);
    assert_eq!(
        fs::read_dir(&run).unwrap().count(),
        3,
        "the leftover went, the user's folder stayed"
    );
    prune(&run, 0).unwrap();
    assert_eq!(steps(&run), [4]);
    assert!(verify(&folder_of(&run, 4)).is_ok());
}

#[test]
fn moments_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(true);
    let weights = init_weights(&config, 5);
    let mut moments = Moments { m: weights.clone(), v: weights.clone() };
    moments.m.remove("model.norm.weight");
    moments.v.insert("model.norm.weight".into(), Tensor { shape: vec![2], data: vec![0.0; 2] });
    moments.v.insert("stray".into(), Tensor { shape: vec![1], data: vec![0.0] });
    let folder = write(dir.path(), &state(1), None, &config, &weights, &moments).unwrap();
    let error = read(&folder).unwrap_err().to_string();
    for part in [
        "adam_m.model.norm.weight: is missing",
        "[2], but its parameter [8]",
        "adam_v.stray: belongs to no",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn a_checkpoint_with_nan_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(true);
    let weights = init_weights(&config, 5);
    let mut moments = Moments { m: weights.clone(), v: weights.clone() };
    moments.v.get_mut("model.norm.weight").unwrap().data[0] = f32::NAN;
    let error = write(dir.path(), &state(1), None, &config, &weights, &moments).unwrap_err();
    assert!(error.to_string().contains("adam_v.model.norm.weight"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
