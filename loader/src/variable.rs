//! Paths that hold a variable which nobody has replaced: single quotes, recipes and batch scripts keep `$SCRATCH` as it is, and a
//! folder of that name would be made.

use std::path::Path;

/// What to say of a local path that holds a variable such as `$SCRATCH` or `${SCRATCH}`, unless something has that very name.
pub fn unexpanded(path: &str) -> Option<String> {
    let after = path
        .split('$')
        .skip(1)
        .find(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic() || "_{(".contains(c)))?;
    if Path::new(path).exists() {
        return None;
    }
    let inside = after.trim_start_matches(['{', '(']);
    let name: String = inside.chars().take_while(|&c| c.is_ascii_alphanumeric() || c == '_').collect();
    Some(format!(
        "{path}: ${name} is a variable that nothing has replaced, and there is no path of that name: a shell replaces it outside of \
         single quotes; in a recipe write the path itself, or give it with --set and double quotes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_named_unless_a_path_is_called_so() {
        for (path, name) in
            [("$SCRATCH/a", "$SCRATCH "), ("a/${USER}/b", "$USER "), ("a-$x", "$x "), ("$(pwd)/a", "$pwd ")]
        {
            assert!(unexpanded(path).is_some_and(|said| said.contains(name)), "{path}");
        }
        for path in ["a", "a$", "a$/b", "5$", "a$1"] {
            assert_eq!(unexpanded(path), None, "{path}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("$acts");
        std::fs::create_dir(&path).expect("a folder is made");
        assert_eq!(unexpanded(path.to_str().expect("a plain name")), None);
    }
}
