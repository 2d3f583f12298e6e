//! `sae inspect`.

use indicatif::{HumanBytes, HumanCount};
use loader::{InspectOptions, InspectProgress, Inspection, ManifestState, NormQuantiles, OpenOptions};

use crate::args::Inspect;
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{contents, remedy, table};

/// Reads the data once and reports on it. Damage makes it fail, after the report.
pub fn run(args: &Inspect) -> Result<(), Failure> {
    let mut bar: Option<Bar> = None;
    let mut watch = |progress: InspectProgress| {
        bar.get_or_insert_with(|| Bar::new("inspecting", 0, progress.total_rows)).set(progress.rows);
    };
    let options = InspectOptions {
        open: OpenOptions { column: args.column.clone(), ..OpenOptions::default() },
        sample: args.rows,
        progress: Some(&mut watch),
        write_manifest: !args.no_write,
        words: Some(&|error| remedy::words(&error.clone().into())),
    };
    let mut found = loader::inspect(&args.data, options)?;
    found.heavy = found.heavy.map(|heavy| heavy.under("data.filter"));
    if let Some(bar) = bar {
        bar.finish();
    }
    if args.json {
        let json = serde_json::to_string_pretty(&found).map_err(|error| Failure::arguments(error.to_string()))?;
        table::say(json);
    } else {
        table::say(found.schema.trim_end());
        let rows = [
            ("rows", HumanCount(found.rows).to_string()),
            ("width", found.width.to_string()),
            ("dtype", found.dtype.name().to_owned()),
            ("shards", found.shards.to_string()),
            ("columns beside", columns(&found)),
            ("globally shuffled", if found.prepared { "yes" } else { "not known to be" }.to_owned()),
            ("rows looked at", HumanCount(found.looked_at).to_string()),
            ("mean norm", table::number(found.mean_norm)),
            ("mean squared norm", table::number(found.mean_norm_sq)),
            ("scale to E‖x‖² = D", scale(&found)),
            ("norms: 0, 1, 10, 50 %", quantiles(&found, |q| vec![q.p0, q.p1, q.p10, q.p50])),
            ("norms: 90, 99, 100 %", quantiles(&found, |q| vec![q.p90, q.p99, q.p100])),
            ("E‖x‖² in the largest 1 % of the rows", table::percent(found.top1_share)),
            ("rows with NaN or infinity", HumanCount(found.non_finite).to_string()),
            ("manifest", manifest(&found)),
            ("identity", found.identity.clone()),
        ];
        table::print(&args.data.join(", "), &rows);
        contents::print("the data", &found.contents);
        for column in &found.token_columns {
            if let Some(problem) = &column.problem {
                table::say(format!("no filter can use the column {}: {problem}", column.name));
            }
        }
        if !found.first_non_finite_names.is_empty() {
            table::say(format!("rows with NaN or infinity begin with: {}", found.first_non_finite_names.join(", ")));
        }
    }
    if let Some(heavy) = &found.heavy {
        tracing::warn!("{heavy}");
    }
    if found.mismatches.is_empty() {
        return match found.non_finite == found.looked_at && found.looked_at > 0 {
            true => Err(Failure::data("no row is finite: all hold NaN or infinite values; make them again")),
            false => Ok(()),
        };
    }
    Err(Failure::data(format!("the data cannot be used as it is:\n  {}", found.mismatches.join("\n  "))))
}

/// What `data.scale = "auto"` would come to; rows of zeros and rows that are not finite have no scale.
fn scale(found: &Inspection) -> String {
    let scale = (found.width as f64 / found.mean_norm_sq).sqrt();
    if found.mean_norm_sq > 0.0 { table::number(scale) } else { "–".into() }
}

fn quantiles(found: &Inspection, which: impl Fn(&NormQuantiles) -> Vec<f64>) -> String {
    let shown = |of| which(of).into_iter().map(table::number).collect::<Vec<_>>().join(" · ");
    found.norm_quantiles.as_ref().map_or("–".into(), shown)
}

/// The columns of one integer a row.
fn columns(found: &Inspection) -> String {
    if found.token_columns.is_empty() {
        return "none of token_id, doc_id and pos".into();
    }
    let column = |column: &loader::TokenColumn| match column.problem {
        Some(_) => format!("{} (not in a usable form in all shards, see below)", column.name),
        None => column.name.clone(),
    };
    found.token_columns.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// What there is of a manifest, and exactly what was compared with its checksums.
fn manifest(found: &Inspection) -> String {
    let part = format!(
        "{} of {}, in {} of {} row groups",
        HumanBytes(found.verified_bytes),
        HumanBytes(found.bytes),
        found.verified_row_groups,
        found.row_groups
    );
    match found.manifest {
        ManifestState::Absent => "none: nothing was verified".into(),
        ManifestState::Written => "written now, with the checksums of what was read".into(),
        ManifestState::Verified => format!("verified: all {} fit their checksums", HumanBytes(found.bytes)),
        ManifestState::PartlyVerified => format!("verified in part: {part}, fit their checksums"),
        ManifestState::Mismatched => {
            let count = match found.mismatches.len() {
                1 => "1 mismatch".to_owned(),
                count => format!("{count} mismatches"),
            };
            format!("{count}, named below; verified: {part}")
        }
        ManifestState::ReadOnly => "none, and the place is read-only: nothing was verified".into(),
        ManifestState::Foreign => "none (manifest.json is another program's): nothing was verified".into(),
    }
}
