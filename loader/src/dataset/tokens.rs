//! Columns of integers beside the activations, one value a row: which token a row is of, from which document, and where in it.
//!
//! Writers store them as whatever integer type they have. They are looked at in every shard when data are opened: a filter that
//! the last shard cannot serve would otherwise end a run at its last shard.

use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::schema::types::ColumnDescriptor;
use serde::Serialize;

use crate::error::Flaw;
use crate::parquet::column::{TOKENS, leaves};
use crate::parquet::footer::Footer;
use crate::parquet::footers;
use crate::parquet::metadata::{check_codec, groups_with_rows};
use crate::{Dataset, Error, Result, RowFilter, SkipList};

/// One of the columns `token_id`, `doc_id` and `pos`, over all shards of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenColumn {
    /// Its name.
    pub name: String,
    /// Shards with rows that have it, in a form that filters can use.
    pub shards: usize,
    /// Why filters cannot use it: the first shard that lacks it or has it in another form, and what is wrong there.
    pub problem: Option<String>,
}

fn is_integer(c: &ColumnDescriptor) -> bool {
    use ConvertedType as C;
    let converted = [C::NONE, C::INT_8, C::INT_16, C::INT_32, C::INT_64, C::UINT_8, C::UINT_16, C::UINT_32, C::UINT_64];
    let logical = match c.logical_type_ref() {
        None => converted.contains(&c.converted_type()),
        Some(LogicalType::Integer(_)) => true,
        Some(_) => false,
    };
    logical && matches!(c.physical_type(), Type::INT32 | Type::INT64)
}

/// The leaf of a column in a file, if it has it; an error says why it cannot be used.
pub(crate) fn leaf(footer: &Footer, name: &str) -> std::result::Result<Option<usize>, Flaw> {
    let leaf = match leaves(&footer.metadata, name).as_slice() {
        [] => return Ok(None),
        [leaf] => *leaf,
        _ => return Err(format!("column {name} has several fields: one integer for each row is needed").into()),
    };
    let descriptor = footer.metadata.file_metadata().schema_descr().column(leaf);
    if !is_integer(&descriptor) {
        let logical = descriptor.logical_type_ref().map(|l| format!(" ({l:?})")).unwrap_or_default();
        return Err(format!("column {name} is {}{logical}: integers are needed", descriptor.physical_type()).into());
    }
    let (lists, outer) = (descriptor.max_rep_level() as usize, footer.activations()?.outer);
    if lists != outer {
        let inside = |lists: usize| match lists {
            0 => "not in lists".to_string(),
            1 => "in lists".to_string(),
            n => format!("in lists inside lists, {n} deep"),
        };
        return Err(Flaw::from(format!(
            "column {name} has integers {}, and the rows of activations are {}: one integer for each row is needed, nested as they are",
            inside(lists),
            inside(outer)
        )));
    }
    for (i, group) in groups_with_rows(&footer.metadata) {
        let chunk = group.column(leaf);
        check_codec(chunk).map_err(|e| format!("row group {i}: column {name}: {e}"))?;
        // Of lists, empty ones may count as well.
        let nulls = chunk.statistics().and_then(|s| s.null_count_opt()).unwrap_or(0);
        if nulls > 0 && lists == 0 {
            return Err(format!("row group {i}: column {name}: {nulls} null values: every row needs one").into());
        }
    }
    Ok(Some(leaf))
}

impl Dataset {
    /// Looks whether every shard has the columns that a filter needs, in a form that it can use. Streams and samples look too;
    /// code that opens data for later may want to know at once.
    ///
    /// # Errors
    /// [`Error::Data`] with the first shard that lacks one, and those of the store.
    pub fn check_columns(&self, filter: &RowFilter, skip: &SkipList) -> Result<()> {
        for name in filter.columns() {
            let found = each_footer(self, Some(skip), |footer| leaf(footer, name))?;
            for (shard, found) in found {
                let (store, key) = self.source(shard);
                match found {
                    Ok(Some(_)) => {}
                    Ok(None) => return Err(Error::data(store.url_of(key), absent(name))),
                    Err(flaw) => {
                        let flaw = flaw.said(|text| format!("{text} (the row filter needs the column)"));
                        return Err(Error::data(store.url_of(key), flaw));
                    }
                }
            }
        }
        Ok(())
    }
}

fn absent(name: &str) -> String {
    format!("has no column {name}, which the row filter needs")
}

/// What there is of the known columns.
pub(crate) fn report(dataset: &Dataset) -> Result<Vec<TokenColumn>> {
    let mut columns = Vec::new();
    for name in TOKENS {
        let found = each_footer(dataset, None, |footer| leaf(footer, name))?;
        if found.iter().all(|(_, found)| matches!(found, Ok(None))) {
            continue;
        }
        let mut column = TokenColumn { name: name.into(), shards: 0, problem: None };
        for (shard, found) in found {
            let problem = match found {
                Ok(Some(_)) => {
                    column.shards += 1;
                    continue;
                }
                Ok(None) => format!("has no column {name}"),
                Err(flaw) => flaw.to_string(),
            };
            let path = &dataset.shards()[shard as usize].path;
            column.problem.get_or_insert_with(|| format!("{path}: {problem}"));
        }
        columns.push(column);
    }
    Ok(columns)
}

/// Looks at the footers of all shards with rows, those left out that `skip` leaves no row group of. In the order of the shards.
pub(crate) fn each_footer<T: Send + Sync>(
    dataset: &Dataset,
    skip: Option<&SkipList>,
    look: impl Fn(&Footer) -> T + Sync,
) -> Result<Vec<(u32, T)>> {
    let is_read = |shard: &u32| {
        let groups = &dataset.shards()[*shard as usize].row_groups;
        let skipped = |group: usize| skip.is_some_and(|skip| skip.has_row_group(*shard, group as u32));
        groups.iter().enumerate().any(|(i, group)| group.rows > 0 && !skipped(i))
    };
    let shards: Vec<u32> = (0..dataset.shards().len() as u32).filter(is_read).collect();
    let looked = footers::look_at(&shards, shards.len(), |&shard| dataset.footer(shard).map(|footer| look(&footer)))?;
    Ok(shards.into_iter().zip(looked).collect())
}
