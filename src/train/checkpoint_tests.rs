use super::*;
use crate::model::weights::tests::{all_equal, tiny};
use crate::model::weights::{Tensor, collect, init_weights};

fn state(step: u64) -> TrainState {
    TrainState {
        step,
        epoch: 1,
        batch_in_epoch: 3,
        seed: u64::MAX,
        num_tokens: 1 << 40,
        row_order_hash: "order".into(),
        recipe_hash: "recipe".into(),
        recipe: "seed = 3\n".into(),
        kernels_hash: "kernels".into(),
        start_hash: "start".into(),
        // A number that is read back as another one by parsers that round.
        best: Some(Best { step: 2, metric: "loss".into(), value: 0.1 + 0.7 }),
        date: Some(-1),
    }
}

type Tensors = BTreeMap<String, Tensor>;

/// Weights and, by the names of their state, both moments of a small model.
fn states() -> (Tensors, Tensors) {
    let config = tiny(true);
    let with = |suffix: &'static str| move |(n, t): (String, Tensor)| (format!("{n}{suffix}"), t);
    let m = init_weights(&config, 6).into_iter().map(with(FIRST_MOMENT));
    let v = init_weights(&config, 7).into_iter().map(with(SECOND_MOMENT));
    (init_weights(&config, 5), m.chain(v).collect())
}

/// Writes a checkpoint of `trained` parameters.
fn write_from(
    run: &Path,
    step: u64,
    source: Option<&Path>,
    trained: &[Parameter],
    (weights, moments): &(Tensors, Tensors),
) -> Result<PathBuf> {
    let read = |name: &str| Ok(weights.get(name).unwrap_or_else(|| &moments[name]).data.clone());
    write(run, &state(step), source, Form::Chat, &tiny(true), trained, &read)
}

/// A run folder with one checkpoint per step.
fn run(steps: &[u64]) -> (tempfile::TempDir, (Tensors, Tensors)) {
    let dir = tempfile::tempdir().unwrap();
    let states = states();
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    for &step in steps {
        let run = dir.path().join("run");
        let folder =
            write_from(&run, step, Some(dir.path()), tiny(true).parameters(), &states).unwrap();
        assert_eq!(folder, folder_of(&run, step));
    }
    (dir, states)
}

#[test]
fn comes_back_bit_for_bit() {
    let (dir, states) = run(&[50]);
    let folder = dir.path().join("run/checkpoint-00000050");
    let read = read(&folder, &|_| true).unwrap();
    assert_eq!(read.state, state(50));
    assert!(all_equal(&collect(&read.weights).unwrap(), &states.0));
    assert!(all_equal(&collect(&read.moments).unwrap(), &states.1));
    assert_eq!(read.config.parameters(), tiny(true).parameters());
    assert!(folder.join("tokenizer.json").exists());
    // It is a model folder by itself.
    let weights = FolderWeights::open(&folder, &ModelConfig::load(&folder).unwrap()).unwrap();
    assert!(all_equal(&collect(&weights).unwrap(), &states.0));

    let again = write_from(&dir.path().join("run"), 50, None, tiny(true).parameters(), &states)
        .unwrap_err();
    assert!(again.to_string().contains("exists already"), "{again}");
}

/// Earlier versions wrote a position of a random generator, which no run has, and no hash of the
/// state itself.
#[test]
fn a_checkpoint_of_an_earlier_version_is_read() {
    let (dir, ..) = run(&[3]);
    let folder = dir.path().join("run/checkpoint-00000003");
    let path = folder.join("state.json");
    let mut file: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    file["format"] = 1.into();
    file["state"]["rng_position"] = 77.into();
    // A hash that is there counts, whatever the format claims.
    fs::write(&path, file.to_string()).unwrap();
    assert!(verify(&folder).unwrap_err().to_string().contains("is torn"));
    file.as_object_mut().unwrap().remove("hash");
    fs::write(&path, file.to_string()).unwrap();
    assert_eq!(read(&folder, &|_| true).unwrap().state, state(3));
}

/// Every byte of the small files of a checkpoint and many of the large ones, changed once: the
/// checkpoint before is taken.
#[test]
fn one_changed_byte_is_noticed() {
    let (dir, ..) = run(&[3, 4]);
    let run = dir.path().join("run");
    let newest = folder_of(&run, 4);
    let mut rng = fastrand::Rng::with_seed(5);
    let mut changed = 0;
    for entry in fs::read_dir(&newest).unwrap() {
        let path = entry.unwrap().path();
        let whole = fs::read(&path).unwrap();
        let all = whole.len() < 2048;
        for i in 0..whole.len().min(if all { usize::MAX } else { 500 }) {
            let at = if all { i } else { rng.usize(..whole.len()) };
            let mut bytes = whole.clone();
            bytes[at] ^= rng.u8(1..);
            fs::write(&path, &bytes).unwrap();
            let error = verify(&newest).map(|state| panic!("{}: {at}: {state:?}", path.display()));
            if i == 0 {
                assert_eq!(latest(&run).unwrap().folder, Some(folder_of(&run, 3)), "{error:?}");
            }
            changed += 1;
        }
        fs::write(&path, whole).unwrap();
    }
    println!("{changed} changed bytes, all noticed");
    assert!(changed > 2000, "{changed}");
    assert_eq!(latest(&run).unwrap().folder, Some(newest));
}

/// Counters with a right hash still have to be those of the run and of the folder.
#[test]
fn counters_that_cannot_be_are_refused() {
    let (dir, ..) = run(&[3, 4]);
    let run = dir.path().join("run");
    let path = folder_of(&run, 4).join("state.json");
    let whole = fs::read_to_string(&path).unwrap();
    type Change = fn(&mut TrainState);
    let changes: [(Change, &str); 3] = [
        (|s| s.step = 5, "is the checkpoint of step 5"),
        (|s| s.num_tokens = u64::MAX, "num_tokens is 18446744073709551615"),
        (|s| s.batch_in_epoch = 1 << 63, "batch_in_epoch is"),
    ];
    for (change, phrase) in changes {
        let mut file = StateFile::parse(&path, &whole).unwrap();
        change(&mut file.state);
        fs::write(&path, file.sealed()).unwrap();
        let found = latest(&run).unwrap();
        assert_eq!(found.folder, Some(folder_of(&run, 3)));
        assert!(found.skipped[0].what.contains(phrase), "{found:?}");
    }
    for (step, epoch, batch_in_epoch, fits) in [
        (7, 1, 2, true),
        (5, 0, 5, true),
        (5, 1, 0, true),
        (8, 1, 2, false),
        (10, 1, 5, true),
        (12, 1, 7, false),
        (15, 3, 0, false),
        (5, u64::MAX, 5, false),
    ] {
        let state = TrainState { step, epoch, batch_in_epoch, ..state(0) };
        assert_eq!(state.misfit(5, 10).is_none(), fits, "{state:?}");
    }
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
    assert!(read(&folder_of(&run, 12), &|_| true).is_err());
    fs::remove_dir_all(folder_of(&run, 9)).unwrap();
    assert_eq!(newest(&run).folder, None);
    assert!(latest(&dir.path().join("absent")).is_err());
}

#[test]
fn only_the_newest_stay() {
    let (dir, ..) = run(&[0, 1, 2, 3, 4]);
    let run = dir.path().join("run");
    prune(&run, 3, Some(1)).unwrap();
    assert_eq!(list(&run).unwrap().len(), 4, "the best one is not counted");
    fs::create_dir(run.join("checkpoint-mine")).unwrap();
    fs::create_dir(run.join(".checkpoint-00000007.partial")).unwrap();
    prune(&run, 2, None).unwrap();
    let steps = |run: &Path| list(run).unwrap().into_iter().map(|(s, _)| s).collect::<Vec<_>>();
    assert_eq!(steps(&run), [3, 4]);
    assert_eq!(
        fs::read_dir(&run).unwrap().count(),
        3,
        "the leftover went, the user's folder stayed"
    );
    prune(&run, 0, None).unwrap();
    assert_eq!(steps(&run), [4]);
    assert!(verify(&folder_of(&run, 4)).is_ok());
}

#[test]
fn moments_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let mut states = states();
    let mut trained = tiny(true).parameters().to_vec();
    let norm = trained.pop().unwrap();
    assert_eq!(norm.name, "model.norm.weight");
    let stray = Parameter { name: "stray".into(), ..norm.clone() };
    trained[1].shape = vec![2, 4];
    trained.push(stray);
    for suffix in [FIRST_MOMENT, SECOND_MOMENT] {
        let t = states.1[&format!("model.norm.weight{suffix}")].clone();
        states.1.insert(format!("stray{suffix}"), t);
        let name = format!("{}{suffix}", trained[1].name);
        states.1.get_mut(&name).unwrap().data.truncate(8);
    }
    let folder = write_from(dir.path(), 1, None, &trained, &states).unwrap();
    let error = read(&folder, &|_| true).err().unwrap().to_string();
    for part in [
        "adam_m.model.norm.weight: is missing",
        "adam_v.model.norm.weight: is missing",
        "[2, 4], but its parameter [8, 8]",
        "adam_v.stray: belongs to no",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn moments_are_those_of_the_trained_set() {
    let dir = tempfile::tempdir().unwrap();
    let is_norm = |name: &str| name.contains("norm");
    let states = states();
    let norms: Vec<Parameter> =
        tiny(true).parameters().iter().filter(|p| is_norm(&p.name)).cloned().collect();
    let folder = write_from(dir.path(), 1, None, &norms, &states).unwrap();
    let found = read(&folder, &is_norm).unwrap();
    assert_eq!(collect(&found.moments).unwrap().len(), 2 * norms.len());
    assert_eq!(collect(&found.weights).unwrap().len(), tiny(true).parameters().len());
    let error = read(&folder, &|_| true).err().unwrap().to_string();
    assert!(error.contains("adam_m.model.embed_tokens.weight: is missing"), "{error}");
    let error = read(&folder, &|_| false).err().unwrap().to_string();
    assert!(error.contains("adam_v.model.norm.weight: belongs to no"), "{error}");
}

#[test]
fn a_checkpoint_with_nan_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut states = states();
    states.1.get_mut("model.norm.weight.v").unwrap().data[0] = f32::NAN;
    let error = write_from(dir.path(), 1, None, tiny(true).parameters(), &states).unwrap_err();
    assert!(error.to_string().contains("adam_v.model.norm.weight"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A hash says that a file is whole, not that it is worth going on from.
#[test]
fn a_checkpoint_that_diverged_is_named() {
    let (dir, ..) = run(&[3]);
    let folder = folder_of(&dir.path().join("run"), 3);
    for (file, phrase) in [(OPTIMIZER, "adam_v."), ("model.safetensors", "model.norm.weight")] {
        let path = folder.join(file);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let state = folder.join(STATE);
        let text = fs::read_to_string(&state).unwrap();
        let mut sealed = StateFile::parse(&state, &text).unwrap();
        sealed.files.insert(file.to_owned(), hash_file(&path).unwrap());
        fs::write(&state, sealed.sealed()).unwrap();
        let found = read(&folder, &|_| true).unwrap();
        let error = match file {
            OPTIMIZER => collect(&found.moments).unwrap_err(),
            _ => collect(&found.weights).unwrap_err(),
        };
        let text = error.to_string();
        assert!(text.contains(phrase) && text.contains("not finite"), "{text}");
    }
}
