//! Everything in laws.json as tables, digit by digit.

use page::{Block, Table};
use serde_json::Value;

use crate::laws::Laws;

/// Tables of everything in laws.json but the draws: values with their intervals, then a table for each list.
pub(super) fn tables(laws: &Laws) -> Result<Vec<Block>, serde_json::Error> {
    // Thousands of draws help no reader.
    let value = serde_json::to_value(Laws { draws: Vec::new(), ..laws.clone() })?;
    let (mut single, mut lists) = (Vec::new(), Vec::new());
    collect("", &value, &mut single, &mut lists);
    let head = ["name", "value", "low", "high"].map(str::to_owned).to_vec();
    let mut tables = vec![Block::Table(Table { caption: "Values".to_owned(), head, rows: single, folded: false })];
    tables.extend(lists.into_iter().map(Block::Table));
    Ok(tables)
}

fn collect(name: &str, value: &Value, single: &mut Vec<Vec<String>>, lists: &mut Vec<Table>) {
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Value::Object(object) if is_estimate(value) => {
            let ends = ["value", "low", "high"].map(|end| text(&object[end]));
            single.push([name.to_owned()].into_iter().chain(ends).collect());
        }
        Value::Object(object) => object.iter().for_each(|(key, value)| collect(&below(key), value, single, lists)),
        Value::Array(list) if list.first().is_some_and(Value::is_object) => lists.push(list_table(name, list)),
        Value::Array(list) if list.is_empty() => {}
        leaf => single.push(vec![name.to_owned(), text(leaf), String::new(), String::new()]),
    }
}

fn is_estimate(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|object| object.len() == 3 && ["value", "low", "high"].iter().all(|end| object.contains_key(*end)))
}

fn list_table(name: &str, list: &[Value]) -> Table {
    let mut head: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for value in list {
        let mut cells = Vec::new();
        for (key, value) in value.as_object().into_iter().flatten() {
            if is_estimate(value) {
                cells.extend(["value", "low", "high"].map(|end| (format!("{key}.{end}"), text(&value[end]))));
            } else {
                cells.push((key.clone(), text(value)));
            }
        }
        if head.is_empty() {
            head = cells.iter().map(|(key, _)| key.clone()).collect();
        }
        rows.push(cells.into_iter().map(|(_, text)| text).collect());
    }
    Table { caption: name.to_owned(), head, rows, folded: true }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
