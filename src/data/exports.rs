//! What tools for people's and models' feedback write, as rows of prompt, chosen and rejected.
//!
//! | tool | a record is known by | rows |
//! |---|---|---|
//! | Label Studio, JSON | `data` and `annotations` | one for each annotation with a `pairwise` result; the sides are the two texts of `data` beside the prompt, left first |
//! | Label Studio, JSON-MIN | `annotation_id`, `annotator` and a column that says left or right | one |
//! | Argilla 2, `to_list` or `to_json` | `fields` and `responses`; flattened, `….responses` | one for each person: a ranking, a label that names a field, or ratings of several fields |
//! | Argilla 1, on the hub | a column with a list of `{user_id, value, status}` | the same |
//! | distilabel | `generations` and `ratings` | the best above the worst |
//! | distilabel, binarised | `chosen_response`, `rejected_response`, `chosen_rating`, `rejected_rating` | one |
//! | Open WebUI, feedback or chats | `snapshot` or `chat` with `history.messages` | each answer that was liked above each that was disliked in its place |
//!
//! Ratings become a column `margin`. Where no side is better, the row says so in its column `choice`
//! (`tie`, `skip`), as those of `oddgrad collect` do; `alone` is a rating of a single answer, which
//! becomes a label (`prompt`, `completion`, `label`) for objectives that want one.
//!
//! Layouts: <https://docs.argilla.io>, <https://labelstud.io/guide/task_format>,
//! <https://distilabel.argilla.io>, <https://docs.openwebui.com>.

use serde_json::{Map, Value, json};

use super::files;
use super::normalise::{has, present};

/// The columns of a row.
pub(super) type Record = Map<String, Value>;
type Rows = Result<Vec<Record>, String>;

/// Columns with a prompt, in the order in which they are looked for.
const PROMPTS: [&str; 6] =
    ["prompt", "instruction", "question", "input", "messages", "conversation"];

/// The rows of a record that another tool wrote; None for any other record.
pub(super) fn rows(record: &Record) -> Option<Rows> {
    if let (Some(Value::Object(data)), Some(Value::Array(annotations))) =
        (record.get("data"), record.get("annotations"))
    {
        return Some(label_studio(data, annotations));
    }
    if record.contains_key("annotation_id") && record.contains_key("annotator") {
        return Some(label_studio_flat(record));
    }
    if let (Some(Value::Object(fields)), Some(Value::Object(responses))) =
        (record.get("fields"), record.get("responses"))
    {
        return Some(argilla(fields, responses.iter().map(|(name, list)| (name.as_str(), list))));
    }
    if record.keys().any(|name| name.ends_with(".responses")) {
        return Some(argilla_flat(record));
    }
    let answers = |value: &Value| {
        let list = value.as_array().filter(|list| !list.is_empty())?;
        list.iter()
            .all(|one| one.get("user_id").is_some() && one.get("value").is_some())
            .then_some(())
    };
    if record.values().any(|value| answers(value).is_some()) {
        let questions = record.iter().filter(|(_, value)| answers(value).is_some());
        return Some(argilla(record, questions.map(|(name, list)| (name.as_str(), list))));
    }
    if let (Some(Value::Array(texts)), Some(Value::Array(ratings))) =
        (record.get("generations"), record.get("ratings"))
        && present(record, "chosen").is_none()
    {
        return Some(rated(record, texts, ratings));
    }
    if present(record, "chosen_response").is_some() || rating(record, "chosen").is_some() {
        return Some(binarised(record));
    }
    history(record).map(|messages| open_webui(record, messages))
}

/// A row of these columns.
fn row(prompt: &Value, chosen: &Value, rejected: &Value) -> Record {
    let columns = [("prompt", prompt), ("chosen", chosen), ("rejected", rejected)];
    columns.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// A row that prefers nothing.
fn undecided(prompt: &Value, answers: &[&Value], choice: &str) -> Record {
    let columns =
        [("prompt", prompt.clone()), ("answers", json!(answers)), ("choice", choice.into())];
    columns.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// `a` above `b` if it has the higher rating, the other way round if the lower.
fn by_rating(prompt: &Value, a: (&Value, f64), b: (&Value, f64)) -> Record {
    let mut made = match a.1.total_cmp(&b.1) {
        std::cmp::Ordering::Equal => return undecided(prompt, &[a.0, b.0], "tie"),
        std::cmp::Ordering::Greater => row(prompt, a.0, b.0),
        std::cmp::Ordering::Less => row(prompt, b.0, a.0),
    };
    made.insert("margin".into(), json!((a.1 - b.1).abs()));
    made
}

/// The prompt among the columns of a record.
fn prompt_of(record: &Record) -> Result<(&str, &Value), String> {
    let found = PROMPTS.into_iter().find_map(|name| Some((name, present(record, name)?)));
    found
        .ok_or_else(|| format!("no column is the prompt ({}); {}", PROMPTS.join(", "), has(record)))
}

/// A number, also one that is written as text.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    number.filter(|x: &f64| x.is_finite())
}

/// The two texts of a record beside its prompt, in their order.
fn two_sides<'a>(
    record: &'a Record,
    prompt: &str,
    beside: &[&str],
) -> Result<[&'a Value; 2], String> {
    let others: Vec<(&String, &Value)> = record
        .iter()
        .filter(|(name, value)| {
            let says =
                value.as_str().is_some_and(|text| !text.trim().is_empty()) || value.is_array();
            says && *name != prompt && !beside.contains(&name.as_str())
        })
        .collect();
    // Of more than two, those whose names differ by a number or a letter at their end.
    let stem = |name: &str| match name.char_indices().next_back() {
        Some((at, last)) if last.is_ascii_alphanumeric() => name[..at].to_owned(),
        _ => name.to_owned(),
    };
    let paired: Vec<_> = others
        .iter()
        .filter(|(name, _)| {
            others.iter().filter(|(other, _)| stem(other) == stem(name)).count() == 2
        })
        .collect();
    match (&others[..], &paired[..]) {
        ([(_, a), (_, b)], _) | (_, [(_, a), (_, b)]) => Ok([a, b]),
        _ => Err(format!("which two columns were compared cannot be told; {}", has(record))),
    }
}

/// The row of a side that was selected, or of none.
fn selected(
    prompt: &Value,
    [left, right]: [&Value; 2],
    side: Option<&str>,
) -> Result<Record, String> {
    match side {
        Some("left") => Ok(row(prompt, left, right)),
        Some("right") => Ok(row(prompt, right, left)),
        Some("both" | "none" | "tie" | "equal") => Ok(undecided(prompt, &[left, right], "tie")),
        None => Ok(undecided(prompt, &[left, right], "skip")),
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            Err(format!("{other:?} was selected, which is neither left nor right"))
        }
    }
}

fn label_studio(data: &Record, annotations: &[Value]) -> Rows {
    let (name, prompt) = prompt_of(data)?;
    let sides = two_sides(data, name, &[])?;
    let mut rows = Vec::new();
    for annotation in annotations {
        let results = annotation.get("result").and_then(Value::as_array).map_or(&[][..], |r| r);
        let pairwise = results.iter().find(|r| r.get("type").is_some_and(|t| t == "pairwise"));
        if pairwise.is_none() && !results.is_empty() {
            return Err("its annotations have no result of type \"pairwise\"; export a project with the Pairwise tag".into());
        }
        let cancelled = annotation.get("was_cancelled").is_some_and(|c| c == true);
        let side = pairwise.and_then(|r| r.pointer("/value/selected")).and_then(Value::as_str);
        let mut made = selected(prompt, sides, side.filter(|_| !cancelled))?;
        if let Some(who) = annotation.get("completed_by") {
            let who = who.get("email").or(who.get("id")).unwrap_or(who);
            made.insert(
                "who".into(),
                who.as_str().map_or_else(|| who.to_string().into(), Value::from),
            );
        }
        rows.push(made);
    }
    if rows.is_empty() {
        rows.push(undecided(prompt, &sides, "skip"));
    }
    Ok(rows)
}

fn label_studio_flat(record: &Record) -> Rows {
    const BESIDE: [&str; 7] =
        ["id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"];
    let is_side =
        |value: &Value| matches!(value.as_str(), Some("left" | "right" | "both" | "none"));
    let chosen = record.iter().find(|(_, value)| is_side(value));
    let Some((question, side)) = chosen else {
        return Err(format!("no column says \"left\" or \"right\"; {}", has(record)));
    };
    let (name, prompt) = prompt_of(record)?;
    let beside: Vec<&str> = BESIDE.into_iter().chain([question.as_str()]).collect();
    let sides = two_sides(record, name, &beside)?;
    let mut made = selected(prompt, sides, side.as_str())?;
    made.insert("who".into(), record["annotator"].to_string().trim_matches('"').into());
    Ok(vec![made])
}

/// One person's answer to a question about a record.
struct Response<'a> {
    question: &'a str,
    who: String,
    value: &'a Value,
}

fn argilla<'a>(fields: &Record, questions: impl Iterator<Item = (&'a str, &'a Value)>) -> Rows {
    let mut responses = Vec::new();
    for (question, list) in questions {
        for (i, one) in list.as_array().map_or(&[][..], |list| list).iter().enumerate() {
            let status = one.get("status").and_then(Value::as_str);
            let value = one.get("value").filter(|value| !value.is_null());
            if let Some(value) = value.filter(|_| !matches!(status, Some("discarded" | "draft"))) {
                let who = one.get("user_id").and_then(Value::as_str);
                let who = who.map_or_else(|| i.to_string(), str::to_owned);
                responses.push(Response { question, who, value });
            }
        }
    }
    of_people(fields, &responses)
}

fn argilla_flat(record: &Record) -> Rows {
    let mut responses = Vec::new();
    for (name, values) in record {
        let Some(question) = name.strip_suffix(".responses") else { continue };
        let beside = |what: &str| record.get(&format!("{name}.{what}")).and_then(Value::as_array);
        let (users, statuses) = (beside("users"), beside("status"));
        for (i, value) in values.as_array().map_or(&[][..], |list| list).iter().enumerate() {
            let at = |list: Option<&'_ Vec<Value>>| {
                list.and_then(|list| list.get(i)?.as_str()).map(str::to_owned)
            };
            let kept = !matches!(at(statuses).as_deref(), Some("discarded" | "draft"));
            if kept && !value.is_null() {
                let who = at(users).unwrap_or_else(|| i.to_string());
                responses.push(Response { question, who, value });
            }
        }
    }
    of_people(record, &responses)
}

/// A row for each person, from a ranking, a label, or ratings of several fields.
fn of_people(fields: &Record, responses: &[Response]) -> Rows {
    let (name, prompt) = prompt_of(fields)?;
    let mut people: Vec<&str> = Vec::new();
    for response in responses {
        if !people.contains(&response.who.as_str()) {
            people.push(&response.who);
        }
    }
    let mut rows = Vec::new();
    for who in people {
        let said: Vec<&Response> = responses.iter().filter(|r| r.who == who).collect();
        let mut made = of_one(fields, name, prompt, &said)?;
        made.insert("who".into(), who.into());
        rows.push(made);
    }
    if rows.is_empty() {
        rows.push(undecided(prompt, &[], "skip"));
    }
    Ok(rows)
}

fn of_one(
    fields: &Record,
    name: &str,
    prompt: &Value,
    said: &[&Response],
) -> Result<Record, String> {
    // A ranking: names of fields, the best first, or with their ranks.
    for response in said {
        if let Some(ranked) = ranking(fields, response.value) {
            let ((first, a), (last, b)) = (ranked[0], ranked[ranked.len() - 1]);
            return Ok(match a < b {
                true => row(prompt, first, last),
                false => undecided(prompt, &[first, last], "tie"),
            });
        }
    }
    // A label that names a field; the other one is its counterpart.
    for response in said {
        let Some(label) = response.value.as_str() else { continue };
        if let Some(chosen) = fields.get(label).filter(|_| label != name) {
            let [a, b] = two_sides(fields, name, &questions(said))?;
            let other = if a == chosen { b } else { a };
            return Ok(row(prompt, chosen, other));
        }
        let label = label.to_ascii_lowercase();
        if ["tie", "both", "equal", "neither", "none", "same"].contains(&label.as_str()) {
            let sides = two_sides(fields, name, &questions(said))?;
            return Ok(undecided(prompt, &sides, "tie"));
        }
    }
    // Ratings: a question for each field, which its name ends like.
    let ending = |text: &str| {
        let digits = text.len() - text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        text[text.len() - digits..].to_owned()
    };
    let mut rated: Vec<(&Value, f64)> = Vec::new();
    for response in said {
        let Some(value) = number(response.value) else { continue };
        let end = ending(response.question);
        let field = fields.iter().find(|(field, value)| {
            *field != name
                && value.is_string()
                && (response.question.ends_with(field.as_str())
                    || (!end.is_empty() && ending(field) == end && !response.question.eq(*field)))
        });
        rated.extend(field.map(|(_, text)| (text, value)));
    }
    let best = rated.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let worst = rated.iter().rev().min_by(|a, b| a.1.total_cmp(&b.1));
    match (best, worst) {
        (Some(&best), Some(&worst)) if rated.len() > 1 => Ok(by_rating(prompt, best, worst)),
        _ => Err(format!(
            "what {} says is no ranking of fields, no field's name and no ratings of two fields; {}",
            questions(said).join(", "),
            has(fields)
        )),
    }
}

fn questions<'a>(said: &[&'a Response]) -> Vec<&'a str> {
    said.iter().map(|response| response.question).collect()
}

/// Fields with their ranks, the best first, if `value` ranks at least two.
fn ranking<'a>(fields: &'a Record, value: &Value) -> Option<Vec<(&'a Value, u64)>> {
    let one = |i: usize, entry: &Value| {
        let name = entry.as_str().or_else(|| entry.get("value")?.as_str())?;
        let rank = entry.get("rank").and_then(Value::as_u64).unwrap_or(i as u64 + 1);
        Some((fields.get(name)?, rank))
    };
    // Columns of a table have a list of ranks beside a list of values.
    let columns = || {
        let of = |name: &str| value.get(name)?.as_array();
        let pairs = of("value")?.iter().zip(of("rank")?);
        Some(pairs.map(|(value, rank)| json!({"value": value, "rank": rank})).collect::<Vec<_>>())
    };
    let list = value.as_array().cloned().or_else(columns)?;
    let ranked = list.iter().enumerate().map(|(i, entry)| one(i, entry));
    let mut ranked = ranked.collect::<Option<Vec<_>>>().filter(|list| list.len() > 1)?;
    ranked.sort_by_key(|(_, rank)| *rank);
    Some(ranked)
}

/// The best generation above the worst.
fn rated(record: &Record, texts: &[Value], ratings: &[Value]) -> Rows {
    let (_, prompt) = prompt_of(record)?;
    if texts.len() != ratings.len() {
        return Err(format!("has {} generations and {} ratings", texts.len(), ratings.len()));
    }
    let rated: Vec<(&Value, f64)> = texts
        .iter()
        .zip(ratings)
        .filter_map(|(text, rating)| Some((text, number(rating)?)))
        .filter(|(text, _)| !text.is_null())
        .collect();
    let best = rated.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1));
    let worst = rated.iter().rev().min_by(|a, b| a.1.total_cmp(&b.1));
    match (best, worst) {
        (Some(&best), Some(&worst)) if rated.len() > 1 => Ok(vec![by_rating(prompt, best, worst)]),
        _ => Err("fewer than two of its generations have a rating that is a number".into()),
    }
}

/// The rating of a side, under the names that it goes by.
fn rating(record: &Record, side: &str) -> Option<f64> {
    ["rating", "avg_rating"].iter().find_map(|what| number(record.get(&format!("{side}_{what}"))?))
}

fn binarised(record: &Record) -> Rows {
    let mut made = record.clone();
    for side in ["chosen", "rejected"] {
        if present(record, side).is_none()
            && let Some(text) = made.remove(&format!("{side}_response"))
        {
            made.insert(side.into(), text);
        }
    }
    if let (Some(chosen), Some(rejected)) = (rating(record, "chosen"), rating(record, "rejected")) {
        if chosen == rejected {
            made.insert("choice".into(), "tie".into());
        } else {
            made.insert("margin".into(), json!(chosen - rejected));
        }
    }
    for side in ["chosen", "rejected"] {
        made.remove(&format!("{side}_rating"));
        made.remove(&format!("{side}_avg_rating"));
    }
    Ok(vec![made])
}

/// The messages of a conversation of Open WebUI, by id or as a list.
fn history(record: &Record) -> Option<&Value> {
    let places = [
        "/snapshot/chat/chat/history/messages",
        "/snapshot/chat/history/messages",
        "/snapshot/history/messages",
    ];
    let snapshot = record.get("snapshot");
    let of_feedback = places.iter().find_map(|at| snapshot?.pointer(at.strip_prefix("/snapshot")?));
    of_feedback.or_else(|| record.get("chat")?.pointer("/history/messages"))
}

/// A message of a tree.
struct Node<'a> {
    id: &'a str,
    parent: Option<&'a str>,
    role: &'a str,
    content: &'a str,
    liked: Option<bool>,
}

fn open_webui(record: &Record, messages: &Value) -> Rows {
    let list: Vec<&Value> = match messages {
        Value::Object(map) => map.values().collect(),
        Value::Array(list) => list.iter().collect(),
        other => return Err(format!("its history is {}, not messages", files::kind(other))),
    };
    let rated = record.get("meta").and_then(|meta| meta.get("message_id")).and_then(Value::as_str);
    let sign = |value: &Value| value.as_f64().filter(|x| *x != 0.0).map(|x| x > 0.0);
    let of_record = record.get("data").and_then(|data| data.get("rating")).and_then(sign);
    let mut nodes = Vec::new();
    for message in list {
        let text = |name: &str| message.get(name).and_then(Value::as_str);
        let (Some(id), Some(role)) = (text("id"), text("role")) else {
            return Err("a message of its history has no id or no role".into());
        };
        let own = message.pointer("/annotation/rating").and_then(sign);
        let liked = if rated == Some(id) { of_record.or(own) } else { own };
        let content = text("content").unwrap_or_default();
        nodes.push(Node { id, parent: text("parentId"), role, content, liked });
    }
    let mut rows = Vec::new();
    for (i, node) in nodes.iter().enumerate().filter(|(_, node)| node.role == "assistant") {
        let Some(liked) = node.liked else { continue };
        // In an export of feedback every rating is a record of its own.
        if rated.is_some_and(|id| id != node.id) {
            continue;
        }
        let prompt = before(&nodes, node)?;
        let siblings = nodes.iter().enumerate().filter(|(j, other)| {
            let there = other.role == "assistant" && other.parent == node.parent;
            // A pair is told by its liked answer alone, or by what was rated.
            *j != i && there && other.liked == Some(!liked)
        });
        let answer = |node: &Node| json!([{"role": "assistant", "content": node.content}]);
        let before = rows.len();
        for (_, other) in siblings {
            let (chosen, rejected) = if liked { (node, other) } else { (other, node) };
            if liked {
                rows.push(row(&prompt, &answer(chosen), &answer(rejected)));
            }
        }
        let paired = nodes.iter().any(|other| {
            other.role == "assistant" && other.parent == node.parent && other.liked == Some(!liked)
        });
        if rows.len() == before && !paired {
            let mut alone = undecided(&prompt, &[], "alone");
            alone.remove("answers");
            alone.insert("completion".into(), answer(node));
            alone.insert("label".into(), liked.into());
            rows.push(alone);
        }
    }
    Ok(rows)
}

/// The conversation that leads to an answer.
fn before(nodes: &[Node], answer: &Node) -> Result<Value, String> {
    let mut turns = Vec::new();
    let mut at = answer.parent;
    while let Some(id) = at {
        let Some(node) = nodes.iter().find(|node| node.id == id) else { break };
        turns.push(json!({"role": node.role, "content": node.content}));
        if turns.len() > nodes.len() {
            return Err("its messages lead in a circle".into());
        }
        at = node.parent;
    }
    turns.reverse();
    match turns.is_empty() {
        true => Err("a rated answer has no question in front of it".into()),
        false => Ok(Value::Array(turns)),
    }
}

#[cfg(test)]
#[path = "exports_tests.rs"]
mod tests;
