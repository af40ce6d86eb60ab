//! `oddgrad generate` and `oddgrad chat` as a person uses them.

use crate::place::Place;

fn nano() -> String {
    format!("{}/models/nano", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn texts_are_streamed_stopped_and_read_from_files() {
    let p = Place::new();
    let generate = format!("generate {} --untuned --form plain --max-tokens 12", nano());
    let whole = p.run(&format!("{generate} --prompt The"));
    assert_eq!(whole.code, Some(0), "{}", whole.err);
    let text = whole.out.trim_end().to_owned();
    assert!(text.len() > 4, "{text:?}");

    let streamed = p.run(&format!("{generate} --prompt The --stream"));
    assert_eq!(streamed.out, whole.out);

    // A stop string in the middle of what is said.
    let middle: String = text.chars().skip(2).take(2).collect();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_oddgrad"));
    command.args(generate.split(' ')).args(["--prompt", "The", "--stop", &middle]);
    let stopped = p.command(&mut command);
    assert_eq!(stopped.out.trim_end(), text.split(&middle).next().unwrap().trim_end());

    p.write("prompts.txt", "The\n\n  \nShe said\n");
    p.write(
        "prompts.jsonl",
        "{\"prompt\": \"The\"}\n{\"prompt\": \"She said\", \"chosen\": \"x\"}\n",
    );
    let lines = p.run(&format!("{generate} --prompts prompts.txt"));
    assert_eq!(lines.out.lines().next(), Some(text.as_str()), "{}", lines.err);
    let rows = p.run(&format!("{generate} --prompts prompts.jsonl --json"));
    let rows: Vec<serde_json::Value> =
        rows.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows[0], serde_json::json!({"prompt": "The", "text": text}));
    assert_eq!((rows.len(), rows[1]["prompt"].as_str()), (2, Some("She said")));

    // The template of the model writes what the first of these is given as.
    let said = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"x\"}]}\n";
    p.write("talk.jsonl", format!("{said}{{\"prompt\": \"Hi\"}}\n"));
    let talk = p.run(&generate.replace("plain", "chat --json --prompts talk.jsonl"));
    let rows: Vec<serde_json::Value> =
        talk.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows[0]["prompt"], serde_json::json!([{"role": "user", "content": "Hi"}]));
    assert_eq!((&rows[1]["prompt"], &rows[1]["text"]), (&"Hi".into(), &rows[0]["text"]));
    p.refused(
        &format!("{generate} --prompts talk.jsonl"),
        &["talk.jsonl:1: is a conversation", "--form chat"],
    );

    p.write("bad.jsonl", "{\"prompt\": [1]}\n{\"text\": \"x\"}\n");
    let bad = format!("{generate} --prompts bad.jsonl");
    p.refused(&bad, &["bad.jsonl:1", "bad.jsonl:2", "\"prompt\" is missing"]);
    p.refused(&format!("{generate} --prompt a --prompt b --stream"), &["--stream", "one prompt"]);
    p.write("blank.txt", "\n \n");
    p.refused(&format!("{generate} --prompts blank.txt"), &["blank.txt", "no prompt in it"]);
}

#[test]
fn a_conversation_is_kept_saved_and_reset() {
    let p = Place::new();
    let chat = format!("chat {} --untuned --max-tokens 8", nano());
    let lines = "Hello\n/save one.jsonl\nAnd then?\n/save one.jsonl\n/save two.jsonl\n/what\n/reset\nHello\n/save three.jsonl\n";
    let said = p.talk(&chat, lines);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let row = |name: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(p.path(name)).unwrap();
        let row: serde_json::Value = serde_json::from_str(&text).unwrap();
        row["messages"].as_array().unwrap().clone()
    };
    let (one, two, three) = (row("one.jsonl"), row("two.jsonl"), row("three.jsonl"));
    assert_eq!((one.len(), two.len()), (2, 4));
    assert_eq!(two[..2], one[..]);
    assert_eq!(three, one, "after /reset the same is said");
    assert!(said.err.contains("one.jsonl: is there already"), "{}", said.err);
    assert!(said.err.contains("/what is not known"), "{}", said.err);
    let answers: Vec<&str> =
        [&two[1], &two[3], &three[1]].map(|m| m["content"].as_str().unwrap()).into();
    assert_eq!(
        said.out.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"),
        answers.join("\n")
    );

    // Rows as they were saved can be trained on.
    let check = format!("data check two.jsonl --sft --model {}", nano());
    let checked = p.run(&check);
    assert!(checked.out.contains("1 read, 1 usable"), "{}{}", checked.out, checked.err);

    // A conversation that outgrows its room is told so and goes on.
    let small = p.talk(
        &format!("{chat} --context 24"),
        "Hello\nTell me more about the long story of it all.\n/reset\nHello\n",
    );
    assert_eq!(small.code, Some(0), "{}", small.err);
    assert!(small.err.contains("begin anew (/reset)"), "{}", small.err);
    p.model("bare");
    let _ = std::fs::remove_file(p.path("bare/chat_template.jinja"));
}

#[test]
fn a_model_without_a_template_does_not_chat() {
    let p = Place::new();
    p.edit("model/tokenizer_config.json", |config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    p.refused("chat model", &["no chat template", "oddgrad generate"]);
}
