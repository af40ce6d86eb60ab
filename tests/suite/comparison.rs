//! `oddgrad compare-objectives`: one command, several runs of the same rows, one page.

use crate::place::{Place, ROW};

#[test]
fn objectives_are_laid_side_by_side() {
    let p = Place::new();
    p.write("held.jsonl", format!("{ROW}\n{}\n", ROW.replace("Say it.", "Tell me.")));
    let compare = "compare-objectives r.toml --untuned --objectives sft,orpo,dpo,sft+dpo --output all \
                   --set data.eval=held.jsonl --set train.max_steps=3 --set train.eval_every=3 \
                   --set dpo:loss.beta=0.2 --set orpo:loss.lambda=0.5";
    let done = p.run(compare);
    assert_eq!(done.code, Some(0), "{}", done.err);
    let row = |name: &str| -> Vec<String> {
        let line = done.out.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        let cells = line.trim_start().strip_prefix(name).unwrap();
        cells.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect()
    };
    assert_eq!(row("runs in a row"), ["1", "1", "1", "2"]);
    assert_eq!(row("optimizer steps"), ["3", "3", "3", "6"]);
    let referred = row("tokens of the reference model, forward, once");
    assert!(
        referred[0] == "0"
            && referred[1] == "0"
            && referred[2] != "0"
            && referred[2] == referred[3]
    );
    // The base model is not away from itself; the others are.
    let divergence = row("KL divergence from the base model, nats per token");
    assert_eq!(divergence.len(), 5);
    assert_eq!(divergence[0].trim_start_matches('-'), "0.0000");
    assert_eq!(row("chosen answer preferred, by mean log-prob").len(), 5);
    let recipe =
        |run: &str| std::fs::read_to_string(p.path("all").join(run).join("recipe.toml")).unwrap();
    assert!(recipe("dpo").contains("beta = 0.2") && recipe("orpo").contains("lambda = 0.5"));
    assert!(recipe("sft+dpo.1").contains("all/sft/model"), "it starts from the run that is there");
    assert!(!p.path("all/sft+dpo").exists(), "which is not made again");
    let other = compare.replace("sft,orpo,dpo,sft+dpo", "sft+sft").replace("all", "other");
    let other = p.run(&other.replace(" --set dpo:loss.beta=0.2 --set orpo:loss.lambda=0.5", ""));
    assert_eq!(other.code, Some(0), "{}", other.err);
    assert!(recipe("../other/sft+sft.1").contains("other/sft+sft/model"), "or is made");
    let page = std::fs::read_to_string(p.path("all/report.html")).unwrap();
    for part in [
        "Objectives compared: sft, orpo, dpo, sft+dpo",
        "Cost",
        "KL divergence",
        "Preference accuracy, held out",
        "Chosen and rejected answers, held out",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // The same weights as each run by itself.
    let alone = p.run("train r.toml --untuned --set data.eval=held.jsonl --set train.max_steps=3 --set train.eval_every=3 --set loss.lambda=0.5 --set output=alone");
    assert_eq!(alone.code, Some(0), "{}", alone.err);
    let weights = |run: &str| std::fs::read(p.path(run).join("model/model.safetensors")).unwrap();
    assert!(weights("alone") == weights("all/orpo"));
    p.refused(compare, &["all: exists already"]);
    let again = p.run(&format!("{compare} --resume"));
    assert_eq!(again.code, Some(0), "{}", again.err);
    p.refused(
        "compare-objectives r.toml --objectives sft,lm,sft,nothing --output more --set dpo:loss.beta=1",
        &["lm: lm: trains on text", "sft: stands in the list twice", "nothing: ", "dpo is not compared", "data.eval"],
    );
}
