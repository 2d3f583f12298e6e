//! PyTorch's archives: a tensor, or a list of tensors that are rows one after the other, which may stand in a dictionary.

use loader::{Error, Help, Result};
use tensors::{File, Format, Tensor, Tensors};

use crate::tensor::{self, Three};
use crate::unit::{Choice, Contents};

pub(crate) fn contents(file: &File, choice: Choice<'_>) -> Result<Contents> {
    let Tensors { named: mut tensors, lists, .. } = Format::Torch.read(file)?;
    let Some(list) = numbered_activations(&tensors, choice.name) else {
        // A tensor by itself, or the only one of a list.
        if let ([(name, _)], None) = (&mut tensors[..], choice.name)
            && name == "0"
        {
            name.clear();
        }
        return tensor::contents(file, tensors, choice, Three::Contexts);
    };
    if !lists.contains(&list) {
        // Rows of all layers, one layer after the other, would look like those of one.
        let numbered: Vec<_> = tensors.iter().filter(|(name, _)| in_list(name, &list).is_some()).collect();
        let (first, last) = (&numbered[0].0, &numbered[numbered.len() - 1].0);
        return Err(Error::Data {
            location: file.url(),
            problem: format!(
                "tensors {first:?} to {last:?} are those of a tuple or a dictionary, as those of all layers are handed out and kept; what is to be read \
                 one after the other is saved as a list"
            ),
            source: None,
            help: Some(Help::Column),
        });
    }
    let (rows, beside): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| in_list(name, &list).is_some());
    let mut all = Contents { shape: None, units: Vec::new() };
    for (i, (_, tensor)) in rows.into_iter().enumerate() {
        let one = tensor::contents(file, vec![(list.clone(), tensor)], Choice::default(), Three::Contexts)?;
        match (&all.shape, &one.shape) {
            (Some(first), Some(shape)) if first != shape => {
                return Err(file.flaw(format!(
                    "tensor {i} of its list has another shape or type than the first: rows need one width and type"
                )));
            }
            _ => all.shape = one.shape,
        }
        all.units.extend(one.units);
    }
    if let Some(shape) = &mut all.shape {
        let beside = beside.iter().filter(|(name, _)| choice.takes(name));
        shape.left_out.extend(beside.map(|(name, tensor)| format!("{name} ({})", tensor.described())));
    }
    Ok(all)
}

/// What holds activations that are numbered: what is wanted, or the file itself, which has no name. Of a list they are rows one after the other.
fn numbered_activations(tensors: &[(String, Tensor)], wanted: Option<&str>) -> Option<String> {
    let list = match wanted {
        Some(wanted) if tensors.iter().any(|(name, _)| name == wanted) => return None,
        Some(wanted) => wanted,
        None => "",
    };
    let elements: Vec<_> = tensors.iter().filter(|(name, _)| in_list(name, list).is_some()).collect();
    let are_numbered = elements.iter().enumerate().all(|(i, (name, _))| in_list(name, list) == Some(&i.to_string()));
    let are_activations = elements.iter().all(|(_, tensor)| tensor::is_activations(tensor));
    // A file that is a list holds nothing else.
    let are_several = if wanted.is_some() { !elements.is_empty() } else { elements.len() == tensors.len().max(2) };
    (are_several && are_numbered && are_activations).then(|| list.to_owned())
}

/// What an element is called in a list of this name.
fn in_list<'a>(name: &'a str, list: &str) -> Option<&'a str> {
    let element = if list.is_empty() { name } else { name.strip_prefix(list)?.strip_prefix('.')? };
    (!element.contains('.')).then_some(element)
}
