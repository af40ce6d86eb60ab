//! `oddgrad data check FILE… --model DIR`

use super::hub::bring_rows;
use super::import::model_folder;
use super::working;
use crate::data::convert::convert;
use crate::data::example::{Example, Sequence};
use crate::data::rows::{Needs, ReadOptions, Split, Undecided};
use crate::data::survey::{Histogram, RULES, Survey, survey};
use crate::data::tokenize::{EosRule, Tokenizer};
use crate::error::{Error, Problem, Result, shown};
use crate::model::adapter::tokenizer_folder;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Arguments of `oddgrad data`.
#[derive(Args)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Read every row as training would and say what is in them: lengths, duplicates, what is refused
    /// and why, and three rows with the tokens that are trained on marked.
    Check(CheckArgs),
    /// Write rows of any layout that is read, exports of Argilla, Label Studio, distilabel and Open WebUI
    /// among them, as rows of one layout, with ratings as a margin and ties by name.
    Convert(ConvertArgs),
}

#[derive(Args)]
struct ConvertArgs {
    /// Files or folders of rows: .jsonl, .jsonl.gz, .json, .parquet.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The file to write (.jsonl).
    #[arg(long)]
    out: PathBuf,
    /// Of a folder whose files name splits, the files of this one.
    #[arg(long, value_enum, default_value_t = Split::Train)]
    split: Split,
}

#[derive(Args)]
struct CheckArgs {
    /// Files or folders of rows: .jsonl, .jsonl.gz, .json, .parquet.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The model whose tokenizer and chat template are used.
    #[arg(long)]
    model: PathBuf,
    /// Longest sequence in tokens, as `data.max_length` of a recipe.
    #[arg(long, default_value_t = 1024)]
    max_length: usize,
    /// Rows for SFT: an answer is enough.
    #[arg(long, conflicts_with = "kto")]
    sft: bool,
    /// Rows for KTO: an answer and its label, or a pair.
    #[arg(long)]
    kto: bool,
    /// When an end of sequence is appended, as `data.eos` of a recipe.
    #[arg(long, value_enum, default_value_t)]
    eos: EosRule,
    /// A column under another name, as `data.map` of a recipe; may be repeated.
    #[arg(long, value_name = "OURS=THEIRS", value_parser = column)]
    map: Vec<(String, String)>,
    /// Of a folder whose files name splits, the files of this one.
    #[arg(long, value_enum, default_value_t = Split::Train)]
    split: Split,
}

fn column(text: &str) -> std::result::Result<(String, String), String> {
    let (ours, theirs) = text.split_once('=').ok_or("write OURS=THEIRS, as in chosen=good")?;
    Ok((ours.to_owned(), theirs.to_owned()))
}

pub(super) fn run(args: &DataArgs) -> Result<()> {
    match &args.command {
        DataCommand::Check(args) => check(args),
        DataCommand::Convert(args) => to_one_layout(args),
    }
}

fn to_one_layout(args: &ConvertArgs) -> Result<()> {
    if args.out.extension().is_none_or(|e| e != "jsonl") {
        let problem = Problem::new("--out", "must end in .jsonl");
        return Err(Error::input("the rows cannot be written", vec![problem]));
    }
    bring_rows(&args.files)?;
    working::on("reading rows");
    let counts = convert(&args.files, &args.out, args.split)?;
    working::done();
    let of = |kind: &str| counts.get(kind).copied().unwrap_or(0);
    outln!(
        "{}: {} rows with an answer that is preferred or labelled, {} ties, {} skips, {} ratings of single answers",
        args.out.display(),
        of("preference"),
        of("tie"),
        of("skip"),
        of("alone")
    );
    Ok(())
}

fn check(args: &CheckArgs) -> Result<()> {
    bring_rows(&args.files)?;
    working::on("reading the tokenizer");
    let tokenizer = Tokenizer::from_folder(&tokenizer_folder(&model_folder(&args.model)?)?)?;
    let options = ReadOptions {
        map: args.map.iter().cloned().collect::<BTreeMap<_, _>>(),
        needs: match (args.sft, args.kto) {
            (true, _) => Needs::Answer,
            (_, true) => Needs::Label,
            _ => Needs::Pair,
        },
        split: args.split,
        ..ReadOptions::default()
    };
    working::on("reading rows");
    let mut progress = |rows| working::on(&format!("{rows} rows"));
    let found =
        survey(&args.files, &tokenizer, &options, args.max_length, args.eos, &mut progress)?;
    working::done();
    tokenizer.notes().iter().chain(&found.notes).for_each(|note| errln!("{note}"));
    print(&found, &tokenizer, args.max_length);
    if found.refused == 0 {
        return Ok(());
    }
    let mut reasons = found.reasons;
    let more = found.refused - reasons.len();
    let summary = match more {
        0 => format!("{} of {} rows cannot be used", found.refused, found.read),
        _ => format!(
            "{} of {} rows cannot be used; the first {} are",
            found.refused,
            found.read,
            reasons.len()
        ),
    };
    reasons.truncate(found.refused);
    Err(Error::input(summary, reasons))
}

fn print(found: &Survey, tokenizer: &Tokenizer, max_length: usize) {
    outln!("rows       {} read, {} usable, {} refused", found.read, found.usable, found.refused);
    if found.undecided != Undecided::default() {
        outln!("           {}", found.undecided.left_out(""));
    }
    if found.usable == 0 {
        return;
    }
    let singles = found.usable - found.pairs;
    outln!("           {} with a rejected side, {singles} without", found.pairs);
    match found.labels {
        [0, 0] => {}
        [desirable, undesirable] => {
            outln!("labels     {desirable} true, {undesirable} false; a pair is one of each");
        }
    }
    outln!("tokens     {:>9} {:>7} {:>7} {:>7} {:>7}", "least", "half", "90 %", "99 %", "most");
    for (name, lengths) in [
        ("prompt", &found.prompt),
        ("chosen", &found.chosen),
        ("rejected", &found.rejected),
        ("longer", &found.sequence),
    ] {
        quantiles(name, lengths);
    }
    outln!("           longer: of a row's two sequences, each a prompt and its answer");
    let all = found.prompt.sum() + found.chosen.sum() + found.rejected.sum();
    outln!("           {all} tokens in all, a prompt counted once for both answers");
    for (rule, counts) in RULES.iter().zip(&found.over_length) {
        outln!("{:<10} at {max_length} tokens: {counts}", name_of(rule));
    }
    match found.duplicates {
        0 => outln!("duplicates none"),
        n => {
            outln!("duplicates {n} rows are an earlier one, token for token");
            for (row, earlier) in &found.named_duplicates {
                outln!("           {row} is {earlier}");
            }
        }
    }
    ends(found, tokenizer);
    outln!("trained on what stands between ⟦ and ⟧");
    for (source, example) in &found.shown {
        outln!("{source}");
        let Example { chosen, rejected, .. } = example;
        show("chosen", chosen, tokenizer);
        if let Some(rejected) = rejected {
            show("rejected", rejected, tokenizer);
        }
    }
}

fn quantiles(name: &str, lengths: &Histogram) {
    if lengths.count() > 0 {
        let [least, half, most, nearly, longest] =
            [0.0, 0.5, 0.9, 0.99, 1.0].map(|share| lengths.quantile(share));
        outln!("  {name:<8} {least:>9} {half:>7} {most:>7} {nearly:>7} {longest:>7}");
    }
}

/// A setting's value as recipes write it.
fn name_of(rule: &impl Serialize) -> String {
    let value = serde_json::to_value(rule).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

fn ends(found: &Survey, tokenizer: &Tokenizer) {
    let [chosen, rejected] = found.unended;
    let Some(eos) = tokenizer.eos() else {
        outln!(
            "ends       the tokenizer has no end of sequence: a model trained on these rows does not learn to stop"
        );
        return;
    };
    let token = tokenizer.token(eos).unwrap_or_default();
    match chosen + rejected {
        0 => outln!("ends       every answer ends with {token} by itself"),
        _ => outln!(
            "ends       {token} is appended to {chosen} chosen and {rejected} rejected answers that do not end with it"
        ),
    }
}

/// A sequence as text, cut in the middle where it is long.
fn show(name: &str, side: &Sequence, tokenizer: &Tokenizer) {
    const MOST: usize = 600;
    let text = |ids: &[u32]| {
        let text = tokenizer.decode(ids, false).unwrap_or_else(|e| format!("({e})"));
        shown(&text.replace('\n', "\\n"), MOST)
    };
    let (prompt, answer) = side.ids.split_at(side.response_start);
    outln!("  {name:<8} {}⟦{}⟧", text(prompt), text(answer));
}
