use super::*;
use crate::train::objectives::Accumulation;

/// A key under `[loss]`.
fn loss(recipe: &Recipe, key: &str) -> toml::Value {
    let settings = recipe.loss.settings();
    settings.into_iter().find(|(k, _)| *k == key).expect("a key of this objective").1
}

/// All that is needed beside [`RATE`]; more keys of `[data]` may follow.
const SMALL: &str = "model = \"m\"\noutput = \"o\"\n[data]\ntrain = \"pairs.jsonl\"\n";

const RATE: &str = "optim.learning_rate=1e-3";

/// Reads a recipe, under [`RATE`] if it has none of its own.
fn parse(text: &str, overrides: &[&str]) -> Result<Recipe> {
    let mut overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    let given = |text: &str| text.contains("learning_rate");
    if !given(text) && !overrides.iter().any(|text| given(text)) {
        overrides.push(RATE.into());
    }
    Recipe::parse("r.toml", text, &overrides)
}

fn problems(text: &str, overrides: &[&str]) -> Vec<String> {
    match parse(text, overrides) {
        Err(Error::Input { problems, .. }) => {
            problems.into_iter().map(|p| format!("{}: {}", p.place, p.what)).collect()
        }
        other => panic!("expected problems, got {other:?}"),
    }
}

/// The example in this module's documentation, as it stands there.
fn documented() -> String {
    let source = include_str!("recipe.rs");
    let block = source.split("```").nth(1).unwrap().strip_prefix("toml\n").unwrap();
    block.lines().map(|l| l.trim_start_matches("//!").to_string() + "\n").collect()
}

#[test]
fn the_documented_example_is_the_defaults() {
    let full = parse(&documented(), &[]).unwrap();
    let bare = parse(
        "model = \"models/nano\"\noutput = \"runs/first\"\n[data]\ntrain = \"pairs.jsonl\"\n",
        &[],
    )
    .unwrap();
    assert_eq!(full, bare);
    assert_eq!(full.data.train, [PathBuf::from("pairs.jsonl")]);
    assert_eq!(loss(&full, "lambda"), 0.1.into());
    assert_eq!((full.optim.eps, full.train.epochs), (1e-8, Some(1.0)));
    // Every key that can be read is documented.
    let keys: Vec<String> =
        full.to_toml().lines().filter_map(|l| Some(l.split_once(" = ")?.0.to_string())).collect();
    assert!(keys.len() > 25, "{keys:?}");
    for key in keys {
        assert!(documented().contains(&format!("{key} =")), "{key}");
    }
}

#[test]
fn the_resolved_recipe_reads_back() {
    let text = format!(
        "objective = \"orpo\"\nseed = 7\n{SMALL}eval = [\"a\", \"b\"]\nover_length = \"truncate-prompt\"\neos = \"trl\"\n\
         [data.map]\nchosen = \"good\"\n[loss]\nlambda = 1\nnll_scope = \"response\"\nnll_reduction = \"sequence\"\n\
         accumulation = \"trl\"\n[optim]\nschedule = \"cosine\"\nwarmup_ratio = 0.1\n[train]\nmax_steps = 12\n\
         [sample]\nevery = 5\nprompts = [\"Hi \\\"you\\\"\"]\n"
    );
    let recipe = parse(&text, &[]).unwrap();
    assert_eq!(loss(&recipe, "lambda"), 1.0.into());
    assert_eq!(recipe.data.map["chosen"], "good");
    assert_eq!(
        (recipe.data.eos, recipe.data.over_length),
        (EosRule::Trl, OverLength::TruncatePrompt)
    );
    assert_eq!(loss(&recipe, "nll_scope"), "response".into());
    assert_eq!(recipe.loss.accumulation, Accumulation::Trl);
    assert_eq!((recipe.train.epochs, recipe.optim.warmup_steps), (None, None));
    assert_eq!(parse(&recipe.to_toml(), &[]).unwrap(), recipe);
}

#[test]
fn overrides() {
    let r = parse(
        SMALL,
        &[
            "optim.learning_rate=2e-4",
            "model=models/other one",
            "data.train=[\"a\",\"b\"]",
            "data.map.chosen=good",
            "loss = { lambda = 0.5 }",
            "train.eval_at_start=false",
            "batch.size=3",
            "batch.size = 4",
        ],
    )
    .unwrap();
    assert_eq!((r.optim.learning_rate, r.batch.size), (2e-4, 4));
    assert_eq!(loss(&r, "lambda"), 0.5.into());
    assert_eq!(r.model, PathBuf::from("models/other one"));
    assert_eq!(r.data.train.len(), 2);
    assert_eq!(r.data.map["chosen"], "good");
    assert!(!r.train.eval_at_start);

    let deep = format!("{}=1", vec!["a"; 100_000].join("."));
    let found =
        problems(SMALL, &["noequals", "=1", "a..b=1", &deep, "batch.size=x", "model=1\nseed=2"]);
    assert_eq!(found.len(), 5, "{found:#?}");
    assert!(found[0].starts_with("--set noequals: write key=value"), "{found:?}");
    assert!(found.iter().any(|p| p.starts_with("--set: batch.size: is \"x\"")), "{found:?}");
}

#[test]
fn keys_that_exclude_each_other() {
    let text = format!("{SMALL}[train]\nepochs = 2\n[optim]\nwarmup_steps = 3\n");
    let r = parse(&text, &["train.max_steps=9", "optim.warmup_ratio=0.25"]).unwrap();
    assert_eq!((r.train.epochs, r.train.max_steps, r.train.total_steps(100)), (None, Some(9), 9));
    assert_eq!((r.optim.warmup_steps, r.optim.warmup(9)), (None, 3));
    // And the other way round.
    let text = format!("{SMALL}[train]\nmax_steps = 2\n[optim]\nwarmup_ratio = 0.5\n");
    let r = parse(&text, &["train.epochs=3", "optim.warmup_steps=4"]).unwrap();
    assert_eq!((r.train.epochs, r.train.max_steps), (Some(3.0), None));
    assert_eq!((r.optim.warmup_steps, r.optim.warmup_ratio), (Some(4), None));
    let both = problems(&format!("{SMALL}[train]\nepochs = 2\nmax_steps = 3\n"), &[]);
    assert_eq!(both, ["r.toml: train.epochs: excludes train.max_steps; keep one of the two"]);
}

#[test]
fn unknown_keys_get_a_suggestion() {
    let found = problems(
        &format!(
            "{SMALL}max_lenght = 5\n[optim]\nlr = 1e-3\n[loss]\nbeta = 0.1\n[batch]\nepochs = 2\n[optimizer]\n[xyzzy]\nq = 1\n"
        ),
        &["optim.learning_rat=1"],
    );
    for (start, meant) in [
        ("r.toml: data.max_lenght: ", "did you mean data.max_length?"),
        ("r.toml: optim.lr: ", "did you mean optim.learning_rate?"),
        ("r.toml: loss.beta: ", "did you mean loss.lambda?"),
        ("r.toml: batch.epochs: ", "did you mean train.epochs?"),
        ("r.toml: xyzzy.q: ", "remove it"),
        ("r.toml: optimizer: ", "is not a key"),
        ("--set: optim.learning_rat: ", "did you mean optim.learning_rate?"),
    ] {
        assert!(
            found.iter().any(|p| p.starts_with(start) && p.contains(meant)),
            "{start} {meant} {found:#?}"
        );
    }
    assert_eq!(found.len(), 7, "{found:#?}");
    let section = problems(&format!("optim = 3\n{SMALL}"), &[]);
    assert_eq!(section, ["r.toml: optim: is a section; write its keys under [optim]"]);
    // A known section may be empty.
    parse(&format!("{SMALL}[optim]\n"), &[]).unwrap();
}

#[test]
fn values_out_of_range_all_at_once() {
    let text = "objective = \"ppo\"\noutput = \"\"\nseed = -1\n[data]\ntrain = []\nmax_length = 1\neval = [3]\nskip_bad_rows = 1\n\
         map = \"x\"\n[loss]\nlambda = -0.1\nnll_scope = \"all\"\n[optim]\nlearning_rate = nan\nbeta1 = 1.0\nbeta2 = 0.9999999999\n\
         eps = 1e-50\nweight_decay = -1\nmax_grad_norm = inf\nwarmup_ratio = 1.5\n[batch]\nsize = 0\nstream_tokens = 1.5\n\
         [train]\nmax_steps = 0\nlog_every = 0\nkeep_checkpoints = 0\n[sample]\nevery = 1\nmax_tokens = 0\n";
    let found = problems(text, &[]);
    for key in [
        "objective",
        "model",
        "output",
        "seed",
        "data.train",
        "data.max_length",
        "data.eval",
        "data.skip_bad_rows",
        "data.map",
        "loss.lambda",
        "loss.nll_scope",
        "optim.learning_rate",
        "optim.beta1",
        "optim.beta2",
        "optim.eps",
        "optim.weight_decay",
        "optim.max_grad_norm",
        "optim.warmup_ratio",
        "batch.size",
        "batch.stream_tokens",
        "train.max_steps",
        "train.log_every",
        "train.keep_checkpoints",
        "sample.every",
        "sample.max_tokens",
    ] {
        let start = format!("r.toml: {key}: ");
        assert_eq!(
            found.iter().filter(|p| p.starts_with(&start)).count(),
            1,
            "{key} once in {found:#?}"
        );
    }
    assert_eq!(found.len(), 25, "{found:#?}");
    assert!(found.iter().any(|p| p.contains("\"orpo\", \"sft\", \"lm\"")), "{found:#?}");
}

#[test]
fn no_learning_rate_fits_every_run() {
    let missing = Recipe::parse("r.toml", SMALL, &[]).unwrap_err().to_string();
    for part in ["r.toml: optim.learning_rate: is missing", "8e-6", "1e-5", "LoRA", "1e-3"] {
        assert!(missing.contains(part), "{part}: {missing}");
    }
    let wrong = problems(SMALL, &["optim.learning_rate=fast"]);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
}

#[test]
fn the_figure_that_decides_is_one_of_the_objective() {
    let of = |overrides: &[&str]| parse(SMALL, overrides).unwrap().best_metric().map(|m| m.key);
    assert_eq!(of(&[]), Some("loss"));
    assert_eq!(of(&["train.best=rewards/accuracies"]), Some("rewards/accuracies"));
    assert_eq!(of(&["train.best=none"]), None);
    let found = problems(SMALL, &["train.best=eval_los"]);
    assert!(found[0].contains("one of \"loss\"") && found[0].contains("\"none\""), "{found:?}");
    let found = problems(SMALL, &["objective=simpo", "train.best=log_odds_chosen"]);
    assert!(found[0].starts_with("--set: train.best: is"), "{found:?}");
}

#[test]
fn sft_is_lambda_zero() {
    for objective in ["sft", "lm"] {
        let text = format!("objective = \"{objective}\"\n{SMALL}");
        assert_eq!(loss(&parse(&text, &[]).unwrap(), "lambda"), 0.0.into());
        parse(&text, &["loss.lambda=0"]).unwrap();
        let found = problems(&text, &["loss.lambda=0.1"]);
        assert!(
            found.len() == 1 && found[0].starts_with("--set: loss.lambda: must be 0"),
            "{found:?}"
        );
    }
    let orpo = parse(SMALL, &["loss.lambda=0"]).unwrap();
    assert_eq!((orpo.loss.objective.name(), loss(&orpo, "lambda")), ("orpo", 0.0.into()));
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    let absent = load(&path, &[]).unwrap_err().to_string();
    assert!(absent.starts_with("cannot read") && absent.contains("recipe.toml"), "{absent}");
    std::fs::write(&path, "model = \n").unwrap();
    let broken = load(&path, &[]).unwrap_err().to_string();
    assert!(broken.contains("not valid TOML") && broken.contains("line 1"), "{broken}");
    std::fs::write(&path, SMALL).unwrap();
    assert_eq!(load(&path, &["seed=4".into(), RATE.into()]).unwrap().seed, 4);
}

#[test]
fn the_fingerprint_follows_what_decides_the_weights() {
    let print = |overrides: &[&str]| parse(SMALL, overrides).unwrap().fingerprint();
    let first = print(&[]);
    for same in ["output=elsewhere", "train.save_every=1", "train.best=none", "data.eval=held"] {
        assert_eq!(print(&[same]), first, "{same}");
    }
    for other in
        ["seed=1", "train.epochs=2", "loss.lambda=0.2", "data.max_length=77", "optim.beta1=0.8"]
    {
        assert_ne!(print(&[other]), first, "{other}");
    }
}

#[test]
fn lengths() {
    let r = parse(SMALL, &["train.epochs=1.5"]).unwrap();
    assert_eq!((r.train.total_steps(3), r.train.total_steps(0)), (5, 1));
    let r = parse(SMALL, &["optim.warmup_steps=2", "optim.learning_rate=1"]).unwrap();
    assert_eq!(r.optim.learning_rate_at(1, 6), 0.5);
    assert_eq!(r.optim.learning_rate_at(4, 6), 0.5);
}

/// Checkpoints are resumed under the fingerprint they were made with, by earlier versions too.
#[test]
fn fingerprints_stay_as_they_were() {
    for (objective, want) in [
        ("orpo", "43c3619b643c4177b40659e7fe45daa478b50371b0e93333b1cdb34f27e4e7b5"),
        ("sft", "b2bbf30253d347cebe49b8ff78c1b9f8004836470591f8aef94aeb9025622559"),
        ("lm", "8e1e8b428824498045a19c7e094248f20851e567fa930dd4e6f1d47ab638e510"),
    ] {
        let text = format!(
            "objective = \"{objective}\"\n{SMALL}max_length = 64\n[loss]\nnll_scope = \"response\"\n\
             [train]\nmax_steps = 1\n"
        );
        assert_eq!(parse(&text, &[]).unwrap().fingerprint(), want, "{objective}");
    }
}
