//! The values of an axis: a list, or a range in equal steps of the logarithm.

use serde::Deserialize;
use toml::{Table, Value};

use crate::failure::Failure;

/// Values of one axis, and configurations of a sweep, at most.
pub const MOST: usize = 10_000;

/// `{ log = [LOW, HIGH], points = N }`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    log: [Value; 2],
    points: usize,
    /// Values are rounded to whole multiples of this.
    multiple: Option<u64>,
}

impl Range {
    fn bounds(&self) -> Option<[f64; 2]> {
        Some([number(&self.log[0])?, number(&self.log[1])?])
    }
}

/// A number, or a count by its name, such as 34M.
fn number(value: &Value) -> Option<f64> {
    let named = || value.as_str().and_then(loader::number::parse_count);
    value.as_float().or_else(|| value.as_integer().or_else(|| i64::try_from(named()?).ok()).map(|whole| whole as f64))
}

/// Numbers above 0, written as one, a list or a range; `name` is what messages call them.
///
/// # Errors
/// [`trainer::Exit::Arguments`] when they are written in another way, there are none, or one is not above 0.
pub fn numbers(name: &str, value: &Value) -> Result<Vec<f64>, Failure> {
    let wrong = || {
        Failure::arguments(format!(
            "{name} must be numbers above 0, as a list or {{ log = [LOW, HIGH], points = N }}, and is {value}"
        ))
    };
    let numbers: Vec<f64> = match value {
        Value::Array(list) => list.iter().map(number).collect::<Option<_>>().ok_or_else(wrong)?,
        Value::Table(table) => {
            let range: Range = table.clone().try_into().map_err(|_| wrong())?;
            if range.multiple.is_some() {
                return Err(wrong());
            }
            log_range(name, range.bounds().ok_or_else(wrong)?, range.points)?
        }
        one => vec![number(one).ok_or_else(wrong)?],
    };
    let all_fit = numbers.iter().all(|number| number.is_finite() && *number > 0.0);
    if numbers.is_empty() || numbers.len() > MOST || !all_fit { Err(wrong()) } else { Ok(numbers) }
}

/// So many numbers from `low` to `high`, each by the same factor above the one before.
///
/// # Errors
/// [`trainer::Exit::Arguments`] when the bounds are none.
pub fn log_range(name: &str, [low, high]: [f64; 2], points: usize) -> Result<Vec<f64>, Failure> {
    let bounds = low.is_finite() && high.is_finite() && low > 0.0 && high > low;
    if !bounds || !(2..=MOST).contains(&points) {
        return Err(Failure::arguments(format!(
            "{name}: a range is written {{ log = [LOW, HIGH], points = N }} with 0 < LOW < HIGH and 2 to {MOST} points"
        )));
    }
    let last = (points - 1) as f64;
    // The ends are the bounds themselves, whatever powers round to.
    Ok((0..points)
        .map(|at| match at {
            0 => low,
            at if at + 1 == points => high,
            at => low * (high / low).powf(at as f64 / last),
        })
        .collect())
}

/// The nearest whole multiple, at least one of them.
pub fn to_multiple(value: f64, multiple: u64) -> u64 {
    let multiple = multiple.max(1);
    multiple.saturating_mul((value / multiple as f64).round().max(1.0) as u64)
}

/// The axes of a table, in the order of their keys: `section.key` and its values. `is_whole` knows the keys that take whole numbers only.
///
/// # Errors
/// [`trainer::Exit::Arguments`] that names the axis which has no values.
pub fn axes(table: &Table, is_whole: &dyn Fn(&str) -> bool) -> Result<Vec<(String, Vec<Value>)>, Failure> {
    let mut found = Vec::new();
    walk("", table, is_whole, &mut found)?;
    Ok(found)
}

fn walk(
    prefix: &str,
    table: &Table,
    is_whole: &dyn Fn(&str) -> bool,
    found: &mut Vec<(String, Vec<Value>)>,
) -> Result<(), Failure> {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Array(list) if list.is_empty() => {
                return Err(Failure::arguments(format!(
                    "axes.{key} is empty, so the product of the axes is too: write at least one value, or leave the axis out"
                )));
            }
            Value::Array(list) => found.push((key, list.clone())),
            // The section [log] of a recipe is a table.
            Value::Table(inner) if inner.get("log").is_some_and(Value::is_array) => {
                let values = range(&key, inner, is_whole(&key))?;
                found.push((key, values));
            }
            Value::Table(inner) => walk(&key, inner, is_whole, found)?,
            other => {
                return Err(Failure::arguments(format!(
                    "axes.{key} must be a list or {{ log = [LOW, HIGH], points = N }}, and is {other}: a single value belongs into the recipe"
                )));
            }
        }
    }
    Ok(())
}

fn range(key: &str, table: &Table, is_whole: bool) -> Result<Vec<Value>, Failure> {
    let name = format!("axes.{key}");
    let range: Range = table.clone().try_into().map_err(|error: toml::de::Error| {
        Failure::arguments(format!("{name}: {}: write {{ log = [LOW, HIGH], points = N }}", error.message().trim()))
    })?;
    let bounds = range.bounds().ok_or_else(|| {
        Failure::arguments(format!("{name}: LOW and HIGH of {{ log = [LOW, HIGH], points = N }} are numbers"))
    })?;
    let numbers = log_range(&name, bounds, range.points)?;
    let rounded = |number: f64, multiple| i64::try_from(to_multiple(number, multiple)).unwrap_or(i64::MAX);
    let mut values: Vec<Value> = Vec::new();
    for number in numbers {
        let value = match range.multiple {
            Some(multiple) => Value::Integer(rounded(number, multiple)),
            None if is_whole => Value::Integer(rounded(number, 1)),
            None => Value::Float(number),
        };
        if values.last() == Some(&value) {
            return Err(Failure::arguments(format!(
                "{name}: rounding makes two points of the range {value}: take fewer points, or a smaller multiple"
            )));
        }
        values.push(value);
    }
    Ok(values)
}

/// Sets `section.key` in a table of tables.
pub fn set(table: &mut Table, key: &str, value: Value) {
    let Some((first, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return;
    };
    let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
    if !inner.is_table() {
        *inner = Value::Table(Table::new());
    }
    if let Value::Table(inner) = inner {
        set(inner, rest, value);
    }
}

/// What `section.key` is set to.
pub fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((first, rest)) => get(table.get(first)?.as_table()?, rest),
    }
}

/// `section.key → value` of a table whose leaves are values, such as one of `[[points]]`.
pub fn leaves(table: &Table) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                found.extend(leaves(inner).into_iter().map(|(key, value)| (format!("{name}.{key}"), value)))
            }
            other => found.push((name.clone(), other.clone())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<(String, Vec<Value>)>, Failure> {
        axes(&text.parse().expect("TOML"), &|key| key != "train.lr")
    }

    #[test]
    fn an_axis_is_a_list_or_a_range() {
        let found = of("'train.l1' = [1, 2.5]\ntrain.lr = {log = [1e-4, 1e-2], points = 3}\nsae.features = {log = [256, 1024], points = 5, multiple = 64}\nlog.every = [5]")
            .expect("axes");
        let mut found = found.into_iter();
        assert_eq!(found.next(), Some(("log.every".to_owned(), vec![Value::Integer(5)])));
        let (_, features) = found.next().expect("features");
        assert_eq!(features, [256, 384, 512, 704, 1024].map(Value::Integer));
        let mut rest: Vec<_> = found.collect();
        rest.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(rest[0], ("train.l1".to_owned(), vec![Value::Integer(1), Value::Float(2.5)]));
        let lr: Vec<f64> = rest[1].1.iter().filter_map(Value::as_float).collect();
        assert_eq!((lr[0], lr[2], lr.len()), (1e-4, 1e-2, 3));
        assert!((lr[1] - 1e-3).abs() < 1e-15, "{lr:?}");
    }

    #[test]
    fn what_is_no_axis_is_refused_by_its_name() {
        for (text, said) in [
            ("train.lr = []", "axes.train.lr is empty"),
            ("train.lr = 1e-3", "axes.train.lr must be a list"),
            ("train.lr = {log = [1, 2]}", "axes.train.lr: missing field `points`"),
            ("train.lr = {log = [2, 1], points = 3}", "0 < LOW < HIGH"),
            ("train.lr = {log = [1, 2], points = 1000000000}", "2 to 10000 points"),
            ("train.seed = {log = [1, 3], points = 9}", "rounding makes two points"),
        ] {
            let failure = of(text).expect_err(text);
            assert!(failure.message().contains(said), "{text}: {}", failure.message());
        }
    }

    #[test]
    fn numbers_are_one_a_list_or_a_range() {
        let of = |text: &str| {
            let table: Table = format!("x = {text}").parse().expect("TOML");
            numbers("lr.x", &table["x"])
        };
        assert_eq!(of("3").expect("one"), [3.0]);
        assert_eq!(of("[1, 2.5e6]").expect("a list"), [1.0, 2.5e6]);
        assert_eq!(of("{log = [1, 4], points = 3}").expect("a range"), [1.0, 2.0, 4.0]);
        for text in
            ["[]", "[0]", "'x'", "[1, 'x']", "{log = [1, 4]}", "{log = [1, 4], points = 3, multiple = 2}", "nan"]
        {
            assert!(of(text).expect_err(text).message().contains("lr.x must be numbers above 0"), "{text}");
        }
    }

    #[test]
    fn keys_lead_into_tables() {
        let mut table: Table = "a.b = 1".parse().expect("TOML");
        set(&mut table, "a.c", Value::Integer(2));
        set(&mut table, "d.e.f", Value::Boolean(true));
        assert_eq!(get(&table, "a.c"), Some(&Value::Integer(2)));
        assert_eq!(get(&table, "a.b"), Some(&Value::Integer(1)));
        assert_eq!(get(&table, "d.e.f"), Some(&Value::Boolean(true)));
        assert_eq!(get(&table, "d.x.f"), None);
        assert_eq!(leaves(&table).len(), 3);
    }
}
