//! Models and data sets by their names on the hub, from the cache of its own tools.

use crate::place::{Place, ROW, copy_folder};
use std::process::Command;

#[test]
fn names_of_the_hub_are_taken_from_its_cache() {
    let p = Place::new();
    let commit = "89abcdef0123";
    let put = |kind: &str, name: &str| {
        let repository = p.path(&format!("hf/hub/{kind}--team--{name}"));
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), commit).unwrap();
        let folder = repository.join("snapshots").join(commit);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    copy_folder(&p.path("model"), &put("models", "small"));
    std::fs::write(put("datasets", "pairs").join("train.jsonl"), format!("{ROW}\n").repeat(4))
        .unwrap();
    let run = |args: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
        p.command(
            command.args(args.split(' ')).env("HF_HOME", p.path("hf")).env_remove("HF_HUB_CACHE"),
        )
    };
    let trained = run(
        "train r.toml --untuned --set model=team/small --set data.train=hf:team/pairs --set train.max_steps=1",
    );
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    assert!(trained.err.contains("4 rows"), "{}", trained.err);
    let said =
        run("generate team/small@89abcdef0123 --untuned --form plain --prompt Say --max-tokens 2");
    assert_eq!(said.code, Some(0), "{}", said.err);
    for (args, part) in [
        ("generate team/other --prompt a", "hf download team/other"),
        (
            "data check hf:team/other --model team/small",
            "hf download --repo-type dataset team/other",
        ),
        ("data check hf:other --model team/small", "write hf:owner/name"),
        (
            "train r.toml --set data.train=hf:team/none --set output=o2",
            "hf download --repo-type dataset team/none",
        ),
    ] {
        let refused = run(args);
        assert_eq!(refused.code, Some(1), "{args}");
        assert!(refused.err.contains(part), "{args}: {}", refused.err);
    }
}
