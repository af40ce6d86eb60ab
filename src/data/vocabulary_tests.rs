use std::path::Path;

use super::*;

/// A tokenizer of 256 bytes and a few merges, with tokens that are not text.
fn byte_level(pre: &str) -> Vocabulary {
    let mut alphabet: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens: Vec<(String, TokenKind)> =
        vec![("<s>".into(), TokenKind::Control), ("</s>".into(), TokenKind::Control)];
    tokens.extend(alphabet.into_iter().map(|c| (c.to_string(), TokenKind::Normal)));
    let merges =
        ["1 2", "12 3", "h e", "l l", "he ll", "hell o", "\u{120} hello", "\u{10a} \u{10a}"];
    for merge in merges {
        tokens.push((merge.replace(' ', ""), TokenKind::Normal));
    }
    tokens.push(("my token".into(), TokenKind::UserDefined));
    let merges = merges.map(str::to_owned).to_vec();
    Vocabulary {
        tokens,
        splitting: Splitting::ByteLevel { pre: pre.into(), merges },
        bos: Some(0),
        eos: Some(1),
        pad: None,
        unknown: None,
        add_bos: true,
    }
}

/// `<unk>`, `<s>`, `</s>`, 256 bytes, characters, and pieces of two and more.
fn sentence_piece() -> Vocabulary {
    let mut tokens: Vec<(String, TokenKind)> = vec![
        ("<unk>".into(), TokenKind::Unknown),
        ("<s>".into(), TokenKind::Control),
        ("</s>".into(), TokenKind::Control),
    ];
    tokens.extend((0..256).map(|b| (format!("<0x{b:02X}>"), TokenKind::Byte)));
    let mut scores = vec![0.0; tokens.len()];
    let pieces = ["he", "ll", "hell", "hello", "\u{2581}hello", "lo", "\u{2581}h"];
    for (i, piece) in pieces.iter().chain(&["h", "e", "l", "o", "\u{2581}"]).enumerate() {
        tokens.push(((*piece).to_owned(), TokenKind::Normal));
        scores.push(-(i as f32));
    }
    // Several of one score, each of which two merges give.
    for blanks in 2..6 {
        tokens.push(("\u{2581}".repeat(blanks), TokenKind::Normal));
        scores.push(-50.0);
    }
    Vocabulary {
        tokens,
        splitting: Splitting::SentencePiece { scores, blank_in_front: true },
        bos: Some(1),
        eos: Some(2),
        pad: None,
        unknown: Some(0),
        add_bos: true,
    }
}

fn written(vocabulary: &Vocabulary, folder: &Path) -> Tokenizer {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    std::fs::write(folder.join("tokenizer.json"), vocabulary.to_tokenizer_json().unwrap()).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_folder(folder).unwrap()
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text).unwrap();
    ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect()
}

#[test]
fn each_pre_tokenizer_splits_in_its_way_and_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    for (pre, digits, breaks) in [
        ("gpt-2", &["123"][..], &["\u{10a}", "\u{10a}"][..]),
        ("smollm", &["1", "2", "3"], &["\u{10a}", "\u{10a}"]),
        ("llama-bpe", &["123"], &["\u{10a}\u{10a}"]),
        ("qwen2", &["1", "2", "3"], &["\u{10a}\u{10a}"]),
        ("default", &["123"], &["\u{10a}", "\u{10a}"]),
    ] {
        let vocabulary = byte_level(pre);
        let tokenizer = written(&vocabulary, dir.path());
        assert_eq!(pieces(&tokenizer, "123"), digits, "{pre}");
        assert_eq!(pieces(&tokenizer, "e\n\ne")[1..][..breaks.len()], *breaks, "{pre}");
        assert_eq!(pieces(&tokenizer, "e hello"), ["e", "\u{120}hello"], "{pre}");
        assert_eq!(pieces(&tokenizer, "emy tokene</s>"), ["e", "my token", "e", "</s>"], "{pre}");
        assert_eq!(Vocabulary::of(&tokenizer, vocabulary.tokens.len()), Ok(vocabulary), "{pre}");
    }
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary = sentence_piece();
    let tokenizer = written(&vocabulary, dir.path());
    assert_eq!(pieces(&tokenizer, "hello"), ["\u{2581}hello"]);
    assert_eq!(pieces(&tokenizer, "helo"), ["\u{2581}", "he", "lo"]);
    assert_eq!(
        pieces(&tokenizer, "h\u{e9}"),
        ["\u{2581}h", "<0xC3>", "<0xA9>"],
        "a character without a token is its bytes"
    );
    let ids = tokenizer.encode("hello h\u{e9}").unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello h\u{e9}");
    let again = Vocabulary::of(&tokenizer, vocabulary.tokens.len()).unwrap();
    assert_eq!(again.tokens, vocabulary.tokens);
    let second = tempfile::tempdir().unwrap();
    let same = written(&again, second.path());
    for text in ["hello", "helo hell lo", "x\u{e9}<s>", "  hello", "h       h"] {
        assert_eq!(same.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{text}");
    }
}

#[test]
fn rows_without_a_token_are_filled_up_and_left_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary = byte_level("gpt-2");
    let tokenizer = written(&vocabulary, dir.path());
    let len = vocabulary.tokens.len();
    let wide = Vocabulary::of(&tokenizer, len + 2).unwrap();
    assert_eq!(wide.tokens[len], (format!("[PAD{len}]"), TokenKind::Unused));
    let again = tempfile::tempdir().unwrap();
    assert_eq!(written(&wide, again.path()).vocab_size(), len);
    let refused = Vocabulary::of(&tokenizer, len - 1).unwrap_err();
    assert!(refused.contains(&format!("{len} tokens")), "{refused}");
}

#[test]
fn what_is_no_vocabulary_is_refused() {
    let refused = |change: &dyn Fn(&mut Vocabulary), phrase: &str| {
        let mut vocabulary = byte_level("gpt-2");
        change(&mut vocabulary);
        let error = vocabulary.to_tokenizer_json().unwrap_err();
        assert!(error.contains(phrase), "`{phrase}` is missing: {error}");
    };
    let merge =
        |merge: &str| Splitting::ByteLevel { pre: "gpt-2".into(), merges: vec![merge.into()] };
    refused(&|v| v.splitting = Splitting::ByteLevel { pre: "kimi".into(), merges: vec![] }, "kimi");
    refused(&|v| v.tokens[7].0 = v.tokens[5].0.clone(), "tokens 5 and 7 are both");
    refused(&|v| v.splitting = merge("a b c"), "a b c");
    refused(&|v| v.splitting = merge("ab"), "not two tokens");
    refused(&|v| v.splitting = merge("a nosuch"), "library refuses it");
    let few = Splitting::SentencePiece { scores: vec![0.0], blank_in_front: true };
    refused(&|v| v.splitting = few.clone(), "1 scores for");
    let long = |v: &mut Vocabulary| {
        v.tokens[5].0 = "x".repeat(10_000);
        let scores = vec![0.0; v.tokens.len()];
        v.splitting = Splitting::SentencePiece { scores, blank_in_front: true };
    };
    refused(&long, "token 5 is longer than");
}

#[test]
fn tokenizers_that_gguf_has_no_name_for_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Value), phrase: &str| {
        let text = byte_level("gpt-2").to_tokenizer_json().unwrap();
        let mut file: Value = serde_json::from_str(&text).unwrap();
        change(&mut file);
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        let error = Vocabulary::of(&tokenizer, 1000).unwrap_err();
        assert!(error.contains(phrase), "`{phrase}` is missing: {error}");
    };
    refused(&|f| f["pre_tokenizer"]["add_prefix_space"] = true.into(), "splits texts as none");
    refused(&|f| f["normalizer"] = json!({"type": "NFC"}), "splits texts as none");
    refused(&|f| f["model"]["ignore_merges"] = true.into(), "splits texts as none");
    refused(&|f| f["model"]["byte_fallback"] = true.into(), "SentencePiece's normalizer");
    let words = json!({"type": "WordLevel", "vocab": {"<s>": 0, "a": 1}, "unk_token": "a"});
    refused(&|f| f["model"] = words.clone(), "only BPE is written");
}

/// Whatever stands around it: what is cut has the tokens of the whole.
#[test]
fn a_text_is_cut_where_its_tokens_are_not_changed() {
    const PARTS: [&str; 26] = [
        " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u{a0}", "a", "h", "hello", " hello", "ll",
        "\u{e9}", "e\u{301}", "\u{301}", "\u{4f60}", "1", "123", "'s", "'", "'LL", "!", "...", "$",
        "</s>", "<",
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(4);
    for pre in PRE.iter().map(|pre| pre.names[0]) {
        let mut vocabulary = byte_level(pre);
        // A token with a blank in it could be anywhere.
        assert_eq!(written(&vocabulary, dir.path()).cut("say it"), 0, "{pre}");
        vocabulary.tokens.retain(|(token, _)| token != "my token");
        let tokenizer = written(&vocabulary, dir.path());
        let mut text = |most: usize| -> String {
            (0..rng.usize(0..most)).map(|_| PARTS[rng.usize(0..26)]).collect()
        };
        let mut cuts = 0;
        for _ in 0..3000 {
            let (prompt, answer) = (text(24), text(8));
            let at = tokenizer.cut(&prompt);
            cuts += usize::from(at > 0);
            let ids = |text: &str| tokenizer.encode(text).unwrap();
            let both = [ids(&prompt[..at]), ids(&format!("{}{answer}", &prompt[at..]))].concat();
            assert_eq!(
                both,
                ids(&format!("{prompt}{answer}")),
                "{pre}: {prompt:?} at {at}, {answer:?}"
            );
        }
        assert!(cuts > 300, "{pre}: {cuts} texts were cut");
    }
    assert_eq!(written(&sentence_piece(), dir.path()).cut("say it"), 0);
}
