//! What differs between two plans, in words that users of the commands know: the keys of a plan are said as words, without what holds them.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Each difference by itself, `dtype: f32 there, bf16 here`.
pub(super) fn differences(there: &Value, here: &Value) -> Vec<String> {
    let ([outer, what, follows, folders], mut found) = (parts(there), Vec::new());
    let [outer_here, what_here, follows_here, folders_here] = parts(here);
    differ("", &outer, &outer_here, &mut found);
    differ("", &what, &what_here, &mut found);
    for (name, layout) in object(&folders) {
        if let Some(here) = folders_here.get(name) {
            differ("", layout, here, &mut found);
        }
    }
    // All folders mostly differ in the same.
    let mut said = HashSet::new();
    found.retain(|difference| said.insert(difference.clone()));
    if found.is_empty() {
        differ("", &follows, &follows_here, &mut found);
        let names = |folders: &Value| object(folders).map(|(name, _)| name.as_str()).collect::<Value>();
        differ("folders", &names(&folders), &names(&folders_here), &mut found);
    }
    found
}

/// A plan around what its maker says, that, what follows from it, and the folders.
fn parts(plan: &Value) -> [Value; 4] {
    let mut outer = plan.clone();
    let take = |from: &mut Value, key: &str| from.as_object_mut().and_then(|o| o.remove(key)).unwrap_or_default();
    let (mut what, folders) = (take(&mut outer, "what"), take(&mut outer, "folders"));
    let follows = take(&mut what, "follows");
    [outer, what, follows, folders]
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn differ(name: &str, there: &Value, here: &Value, found: &mut Vec<String>) {
    match (there, here) {
        (a, b) if a == b => {}
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                differ(&below(name, &key.replace('_', " ")), &of(a), &of(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if items(a).is_some() && items(a) == items(b) => {
            for (item, (a, b)) in items(a).into_iter().flatten().zip(a.iter().zip(b)) {
                let mut own = Vec::new();
                differ(&below(name, &item), a, b, &mut own);
                // That it differs is what matters of one of many things: of a file its length and its hash do.
                found.extend(own.into_iter().next());
            }
        }
        (a, b) => found.push(format!("{name}: {} there, {} here", shown(a), shown(b))),
    }
}

fn below(name: &str, key: &str) -> String {
    if name.is_empty() { key.to_owned() } else { format!("{name} {key}") }
}

/// What the things in a list are called: by their names, or by their numbers from 1 on. Nothing of a list of numbers or words.
fn items(list: &[Value]) -> Option<Vec<String>> {
    let called = |(at, item): (usize, &Value)| match (item, item.get("name").and_then(Value::as_str)) {
        (_, Some(name)) => Some(name.to_owned()),
        (Value::Object(_) | Value::Array(_), None) => Some((at + 1).to_string()),
        _ => None,
    };
    list.iter().enumerate().map(called).collect()
}

/// A value, shortened.
fn shown(value: &Value) -> String {
    const MOST: usize = 80;
    let text = match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(is_so) => if *is_so { "yes" } else { "no" }.to_owned(),
        Value::Array(list) if list.iter().any(Value::is_object) => items(list).unwrap_or_default().join(", "),
        other => other.to_string(),
    };
    if text.chars().count() <= MOST { text } else { text.chars().take(MOST).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_said_in_words_of_the_plan() {
        let files = |names: &[(&str, u64, &str)]| {
            let of = |(name, bytes, ends): &(&str, u64, &str)| json!({ "name": name, "bytes": bytes, "ends": ends });
            Value::from(names.iter().map(of).collect::<Vec<_>>())
        };
        let plan = |layers: &[u64], text: Value, packed: bool, dtype: &str| {
            let layout = json!({ "width": 4, "dtype": dtype, "columns": [{ "name": "pos", "kind": "i32" }] });
            let folders: Map<String, Value> =
                layers.iter().map(|layer| (format!("layer-{layer}"), layout.clone())).collect();
            let what = json!({
                "layers": layers, "text": text, "packed": packed, "source": { "shard_rows": 7 }, "follows": { "hash": layers.len() },
            });
            json!({ "version": 1, "what": what, "folders": folders })
        };
        let (x, y) = (("x.txt", 12, "a"), ("y.txt", 8, "b"));
        let there = plan(&[1, 2], files(&[x, y]), true, "f32");
        let said = |here: &Value| differences(&there, here);
        assert_eq!(said(&plan(&[1, 2], files(&[x, y]), true, "bf16")), ["dtype: f32 there, bf16 here"]);
        assert_eq!(said(&plan(&[1, 2], files(&[x, y]), false, "f32")), ["packed: yes there, no here"]);
        assert_eq!(said(&plan(&[2], files(&[x, y]), true, "f32")), ["layers: [1,2] there, [2] here"]);
        let longer = files(&[("x.txt", 13, "c"), y]);
        assert_eq!(said(&plan(&[1, 2], longer, true, "f32")), ["text x.txt bytes: 12 there, 13 here"]);
        let other = files(&[("x.txt", 12, "c"), y]);
        assert_eq!(said(&plan(&[1, 2], other, true, "f32")), ["text x.txt ends: a there, c here"]);
        assert_eq!(said(&plan(&[1, 2], files(&[y]), true, "f32")), ["text: x.txt, y.txt there, y.txt here"]);
        let mut wider = there.clone();
        wider["folders"]["layer-1"]["columns"][0]["kind"] = "i64".into();
        wider["version"] = 2.into();
        wider["what"]["source"] = json!({ "rows": [3] });
        let of_source = ["source shard rows: 7 there, none here", "source rows: none there, [3] here"];
        let all = ["version: 1 there, 2 here", of_source[0], of_source[1], "columns pos kind: i32 there, i64 here"];
        assert_eq!(said(&wider), all);
        let mut follows = there.clone();
        follows["what"]["follows"] = json!({ "hash": 9 });
        assert_eq!(said(&follows), ["hash: 2 there, 9 here"]);
        let mut fewer = there.clone();
        fewer["folders"].as_object_mut().unwrap().remove("layer-2");
        assert_eq!(said(&fewer), [r#"folders: ["layer-1","layer-2"] there, ["layer-1"] here"#]);
    }
}
