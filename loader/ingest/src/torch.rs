//! PyTorch's archives: a tensor, or a list of tensors that are rows one after the other.

use loader::Result;
use tensors::{File, Format};

use crate::tensor::{self, Three};
use crate::unit::Contents;

pub(crate) fn contents(file: &File, wanted: Option<&str>) -> Result<Contents> {
    let mut tensors = Format::Torch.read(file)?.named;
    let in_list = tensors.iter().enumerate().all(|(i, (name, _))| *name == i.to_string());
    if wanted.is_some()
        || !in_list
        || tensors.len() < 2
        || !tensors.iter().all(|(_, tensor)| tensor::is_activations(tensor))
    {
        if in_list && tensors.len() == 1 && wanted.is_none() {
            tensors[0].0.clear();
        }
        return tensor::contents(file, tensors, wanted, Three::Contexts);
    }
    // A list of tensors is their rows, one after the other.
    let mut all = Contents { shape: None, units: Vec::new() };
    for (i, (_, tensor)) in tensors.into_iter().enumerate() {
        let one = tensor::contents(file, vec![(String::new(), tensor)], None, Three::Contexts)?;
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
    Ok(all)
}
