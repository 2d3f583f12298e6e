//! Paths that hold a variable which nobody has replaced: single quotes, recipes and batch scripts keep `$SCRATCH` as it is, and a
//! folder of that name would be made.

use std::path::Path;

/// A local path that holds a variable which nothing has replaced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{path}: ${variable} is a variable that nothing has replaced, and there is no path of that name: a shell replaces it outside of \
     single quotes; in a recipe write the path itself"
)]
pub struct Unexpanded {
    /// The path as it was given.
    pub path: String,
    /// The variable's name.
    pub variable: String,
}

/// Whether a local path holds a variable such as `$SCRATCH` or `${SCRATCH}`, and no file or folder on the way has that very name.
///
/// # Errors
/// [`Unexpanded`].
pub fn check_expanded(path: &str) -> Result<(), Unexpanded> {
    unexpanded(path).map_or(Ok(()), |variable| Err(Unexpanded { path: path.to_owned(), variable }))
}

/// The name of the first such variable.
fn unexpanded(path: &str) -> Option<String> {
    // What is new may lie in a folder that is called so.
    let is_new = |at: usize| !Path::new(&path[..path[at..].find('/').map_or(path.len(), |end| at + end)]).exists();
    let after = path.match_indices('$').find_map(|(at, _)| {
        let rest = &path[at + 1..];
        let names = rest.starts_with(|c: char| c.is_ascii_alphabetic() || "_{(".contains(c));
        (names && is_new(at)).then_some(rest)
    })?;
    let inside = after.trim_start_matches(['{', '(']);
    Some(inside.chars().take_while(|&c| c.is_ascii_alphanumeric() || c == '_').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_named_unless_a_path_is_called_so() {
        for (path, name) in [("$SCRATCH/a", "SCRATCH"), ("a/${USER}/b", "USER"), ("a-$x", "x"), ("$(pwd)/a", "pwd")] {
            assert_eq!(unexpanded(path).as_deref(), Some(name), "{path}");
            let said = check_expanded(path).unwrap_err().to_string();
            assert!(said.starts_with(&format!("{path}: ${name} is a variable")), "{said}");
        }
        for path in ["a", "a$", "a$/b", "5$", "a$1"] {
            assert_eq!(unexpanded(path), None, "{path}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("$acts");
        std::fs::create_dir(&path).expect("a folder is made");
        let path = path.to_str().expect("a plain name");
        for below in ["", "/", "/new", "/*.parquet", "/a/b"] {
            assert_eq!(unexpanded(&format!("{path}{below}")), None, "{below}");
        }
        assert_eq!(unexpanded(&format!("{path}/$b/c")).as_deref(), Some("b"));
    }
}
