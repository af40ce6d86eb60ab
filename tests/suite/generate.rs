//! Generation over the cache against continuations recorded before there was one, when every token
//! ran the whole sequence again.

use crate::{golden, gpu};
use oddgrad::data::messages::Message;
use oddgrad::data::tokenize::Tokenizer;
use oddgrad::model::config::ModelConfig;
use oddgrad::model::generate::{Generator, Room, Sampling, unwatched};
use oddgrad::model::weights::{FolderWeights, ParameterValues};
use oddgrad::program::Store;
use serde_json::Value;
use std::path::Path;

const NEW: usize = 16;

fn messages(list: &Value) -> Vec<Message> {
    let text = |m: &Value, key: &str| m[key].as_str().unwrap().to_owned();
    list.as_array()
        .unwrap()
        .iter()
        .map(|m| Message::new(text(m, "role"), text(m, "content")))
        .collect()
}

/// The prompts of a file of rows as token ids.
fn prompts(file: &str, tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(golden("data").join(format!("{file}.jsonl"))).unwrap();
    let prompt = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let prompt = match &row["prompt"] {
            Value::String(text) => vec![Message::new("user", text.clone())],
            Value::Array(_) => messages(&row["prompt"]),
            _ => {
                let mut all = messages(&row["chosen"]);
                all.pop();
                all
            }
        };
        tokenizer.encode(&tokenizer.render_prompt(&prompt).unwrap()).unwrap()
    };
    text.lines().map(prompt).collect()
}

/// All 32 rows of each file, eight at a time, sixteen tokens each.
#[test]
fn greedy_continuations_are_those_recorded() {
    let text = std::fs::read_to_string(golden("greedy.json")).unwrap();
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let gpu = gpu();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for model in ["llama_tied", "llama_untied", "llama_overfit", "nano"] {
        let folder = if model == "nano" { root.join("models/nano") } else { golden(model) };
        let with_tokenizer = if model == "nano" { &folder } else { &golden("llama_tied") };
        let config = ModelConfig::load(&folder).unwrap();
        let tokenizer = Tokenizer::from_folder(with_tokenizer).unwrap();
        let store = Store::new(&gpu);
        let weights = FolderWeights::open(&folder, &config).unwrap();
        weights.each(&mut |name, shape, values| store.write(name, shape, values)).unwrap();
        for file in ["prefs_plain", "prefs_chat", "prefs_chat_implicit"] {
            let prompts = prompts(file, &tokenizer);
            let longest = prompts.iter().map(Vec::len).max().unwrap();
            let room = Room { sequences: 8, length: longest + NEW };
            let generator = Generator::new(&gpu, &store, &config, room).unwrap();
            let greedy = Sampling::greedy(NEW);
            let new = generator.generate(&prompts, &[], &greedy, &mut unwatched).unwrap();
            let want: Vec<Vec<u32>> =
                serde_json::from_value(recorded[format!("{model}/{file}")].clone()).unwrap();
            assert_eq!(new, want, "{model} {file}");
        }
    }
}
