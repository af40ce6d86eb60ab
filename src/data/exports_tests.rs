use super::*;

fn of(record: Value) -> Vec<Value> {
    let record = record.as_object().unwrap();
    let made = rows(record).expect("an export").unwrap_or_else(|e| panic!("{e}: {record:?}"));
    made.into_iter().map(Value::Object).collect()
}

fn refused(record: Value) -> String {
    rows(record.as_object().unwrap()).expect("an export").unwrap_err()
}

fn pair(chosen: &str, rejected: &str) -> Value {
    json!({"prompt": "Why?", "chosen": chosen, "rejected": rejected})
}

fn who(mut row: Value, who: &str) -> Value {
    row["who"] = who.into();
    row
}

#[test]
fn rows_of_one_s_own_are_left_alone() {
    for record in [
        json!({"prompt": "a", "chosen": "b", "rejected": "c"}),
        json!({"messages": [{"role": "user", "content": "a"}], "data": "x"}),
        json!({"prompt": "a", "completion": "b", "label": true, "id": 3}),
        json!({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}}),
        json!({"instruction": "a", "generations": ["b"], "chosen": "b", "rejected": "c"}),
        json!({"chat": "no tree", "prompt": "a"}),
    ] {
        assert_eq!(rows(record.as_object().unwrap()), None, "{record}");
    }
}

#[test]
fn label_studio() {
    let task = |selected: Value| {
        json!({
            "id": 1,
            "data": {"prompt": "Why?", "answer1": "So.", "answer2": "Because."},
            "annotations": [{"id": 5, "completed_by": 7, "was_cancelled": false, "result": selected}],
            "predictions": []
        })
    };
    let result =
        |side: &str| json!([{"from_name": "pw", "type": "pairwise", "value": {"selected": side}}]);
    assert_eq!(of(task(result("left"))), [who(pair("So.", "Because."), "7")]);
    assert_eq!(of(task(result("right"))), [who(pair("Because.", "So."), "7")]);
    assert_eq!(of(task(json!([])))[0]["choice"], "skip");
    let mut cancelled = task(result("left"));
    cancelled["annotations"][0]["was_cancelled"] = true.into();
    assert_eq!(of(cancelled)[0]["choice"], "skip");
    assert!(refused(task(json!([{"type": "choices", "value": {}}]))).contains("pairwise"));
    let mut more = task(result("left"));
    more["data"]["source"] = "a book".into();
    assert_eq!(
        of(more.clone()),
        [who(pair("So.", "Because."), "7")],
        "names that differ by a number"
    );
    more["data"] = json!({"prompt": "Why?", "a": "x", "bb": "y", "cd": "z"});
    assert!(refused(more.clone()).contains("cannot be told"));
    more["data"] = json!({"text1": "x", "text2": "y"});
    assert!(refused(more).contains("no column is the prompt"));
    // Two people.
    let mut two = task(result("left"));
    let other =
        json!({"completed_by": {"id": 8, "email": "b@example.org"}, "result": result("right")});
    two["annotations"].as_array_mut().unwrap().push(other);
    assert_eq!(
        of(two),
        [who(pair("So.", "Because."), "7"), who(pair("Because.", "So."), "b@example.org")]
    );
    let flat = json!({"id": 1, "annotation_id": 5, "annotator": 7, "lead_time": 1.5, "created_at": "2026", "prompt": "Why?", "text1": "So.", "text2": "Because.", "pw": "right"});
    assert_eq!(of(flat), [who(pair("Because.", "So."), "7")]);
}

#[test]
fn argilla() {
    let fields = json!({"instruction": "Why?", "response1": "So.", "response2": "Because."});
    let record = |question: &str, value: Value| {
        json!({"id": "1", "fields": fields, "metadata": {}, "suggestions": {}, "status": "completed",
            "responses": {question: [{"value": value, "user_id": "ann"}]}})
    };
    let ranked = record("preference", json!(["response2", "response1"]));
    assert_eq!(of(ranked), [who(pair("Because.", "So."), "ann")]);
    let label = record("better", json!("response1"));
    assert_eq!(of(label), [who(pair("So.", "Because."), "ann")]);
    assert_eq!(of(record("better", json!("tie")))[0]["choice"], "tie");
    assert!(refused(record("better", json!("perhaps"))).contains("better"));
    // Flattened, with a draft and somebody who said nothing.
    let flat = json!({"id": "1", "status": "completed", "_server_id": "x", "instruction": "Why?",
        "response1": "So.", "response2": "Because.",
        "preference.responses": [["response1", "response2"], ["response2", "response1"], null],
        "preference.responses.users": ["ann", "bob", "cy"],
        "preference.responses.status": ["submitted", "draft", "submitted"]});
    assert_eq!(of(flat), [who(pair("So.", "Because."), "ann")]);
    // Ratings of generations, as distilabel's step asks for them.
    let rated = json!({"fields": {"instruction": "Why?", "generation-0": "So.", "generation-1": "Because."},
        "responses": {"generation-0-rating": [{"value": 2, "user_id": "ann"}], "generation-1-rating": [{"value": 5, "user_id": "ann"}]}});
    assert!(refused(rated).contains("no ratings of two fields"), "names that fit no field");
    let rated = json!({"fields": {"instruction": "Why?", "generation-0": "So.", "generation-1": "Because."},
        "responses": {"rating-0": [{"value": 2, "user_id": "ann"}], "rating-1": [{"value": 5, "user_id": "ann"}]}});
    let mut expected = who(pair("Because.", "So."), "ann");
    expected["margin"] = 3.0.into();
    assert_eq!(of(rated), [expected]);
    // The first version's columns, with ranks that can be the same.
    let old = |ranks: [u64; 2]| {
        json!({"prompt": "Why?", "response1": "So.", "response2": "Because.", "external_id": "x",
            "preference": [{"user_id": "ann", "status": "submitted",
                "value": {"rank": ranks, "value": ["response1", "response2"]}}]})
    };
    assert_eq!(of(old([2, 1])), [who(pair("Because.", "So."), "ann")]);
    assert_eq!(of(old([1, 1]))[0]["choice"], "tie");
    let list = json!({"prompt": "Why?", "response1": "So.", "response2": "Because.",
        "preference": [{"user_id": "ann", "value": [{"rank": 2, "value": "response1"}, {"rank": 1, "value": "response2"}]}]});
    assert_eq!(of(list), [who(pair("Because.", "So."), "ann")]);
}

#[test]
fn distilabel() {
    let raw = |ratings: Value| json!({"instruction": "Why?", "generations": ["So.", "Because.", "Who asks?"], "ratings": ratings, "rationales": ["", "", ""]});
    let mut expected = pair("Because.", "So.");
    expected["margin"] = 3.0.into();
    assert_eq!(of(raw(json!([2, 5, 3]))), [expected.clone()]);
    assert_eq!(of(raw(json!(["2", "5", null]))), [expected.clone()]);
    assert_eq!(of(raw(json!([3, 3, 3])))[0]["choice"], "tie");
    assert!(refused(raw(json!([3, null, "none"]))).contains("fewer than two"));
    assert!(refused(raw(json!([3]))).contains("3 generations and 1 ratings"));
    let binary = json!({"prompt": "Why?", "prompt_id": "x", "chosen": "Because.", "chosen_rating": 5, "rejected": "So.", "rejected_rating": 2});
    let made = &of(binary.clone())[0];
    assert_eq!((&made["chosen"], &made["margin"]), (&json!("Because."), &json!(3.0)));
    let mut tie = binary;
    tie["rejected_rating"] = 5.into();
    assert_eq!(of(tie)[0]["choice"], "tie");
    let named = json!({"instruction": "Why?", "chosen_response": "Because.", "rejected_response": "So.", "chosen_avg_rating": 4.5, "rejected_avg_rating": 1.5});
    let made = &of(named)[0];
    assert_eq!(made["rejected"], "So.");
    assert_eq!(made["margin"], 3.0);
}

#[test]
fn open_webui() {
    let say = |id: &str, parent: Option<&str>, role: &str, text: &str, rating: Option<i64>| {
        let mut message = json!({"id": id, "parentId": parent, "role": role, "content": text});
        if let Some(rating) = rating {
            message["annotation"] = json!({"rating": rating});
        }
        message
    };
    let tree = |first: Option<i64>, second: Option<i64>| {
        json!({
            "q": say("q", None, "user", "Why?", None),
            "a": say("a", Some("q"), "assistant", "So.", first),
            "b": say("b", Some("q"), "assistant", "Because.", second),
            "r": say("r", Some("b"), "user", "And?", None),
            "c": say("c", Some("r"), "assistant", "That is all.", None),
        })
    };
    let chat = |messages: Value| json!({"id": "1", "title": "x", "chat": {"history": {"messages": messages, "currentId": "c"}}});
    let turn = |role: &str, text: &str| json!([{"role": role, "content": text}]);
    let made = of(chat(tree(Some(-1), Some(1))));
    let expected = json!({"prompt": turn("user", "Why?"), "chosen": turn("assistant", "Because."), "rejected": turn("assistant", "So.")});
    assert_eq!(made, std::slice::from_ref(&expected));
    // A rating without its counterpart is a label.
    let made = of(chat(tree(None, Some(1))));
    assert_eq!(
        made,
        [
            json!({"prompt": turn("user", "Why?"), "choice": "alone", "completion": turn("assistant", "Because."), "label": true})
        ]
    );
    assert_eq!(of(chat(tree(None, None))), [json!(null); 0]);
    // A record of feedback is about one message; of a pair, the liked answer's record is the row.
    let feedback = |id: &str, rating: i64, messages: Value| {
        json!({"id": "f", "type": "rating", "data": {"rating": rating}, "meta": {"message_id": id, "chat_id": "1"},
            "snapshot": {"chat": {"chat": {"history": {"messages": messages}}}}})
    };
    assert_eq!(of(feedback("b", 1, tree(Some(-1), Some(1)))), [expected]);
    assert_eq!(of(feedback("a", -1, tree(Some(-1), Some(1)))), [json!(null); 0]);
    let deeper = of(feedback("c", -1, tree(None, None)));
    assert_eq!(deeper[0]["label"], false);
    assert_eq!(deeper[0]["prompt"].as_array().unwrap().len(), 3);
    let mut circle = tree(None, None);
    circle["q"]["parentId"] = "r".into();
    assert!(refused(feedback("c", 1, circle)).contains("circle"));
}
