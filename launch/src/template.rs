//! Filling in the scripts and manifests of launch/templates, where `{{name}}` stands for a value.

/// The template with every name's value in its place. Values are put in as they are: the caller quotes them.
pub fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut filled = String::with_capacity(2 * template.len());
    let mut rest = template;
    // One pass: braces inside a value are the value's own.
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let (name, end) = after.split_once("}}").expect("templates close what they open: they are tested");
        let value = values.iter().find(|(known, _)| *known == name);
        filled.push_str(&value.expect("templates name values that there are: they are tested").1);
        rest = end;
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn values_stand_as_they_are() {
        assert_eq!(fill("a {{x}}{{y}} b", &[("x", "{{y}}".into()), ("y", "2".into())]), "a {{y}}2 b");
    }
}
