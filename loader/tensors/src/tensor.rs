//! What files say of their tensors.

use bytes::Bytes;

use crate::Number;

/// A tensor whose values lie in a file as they are: in the order of its rows, unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Where it begins in the file.
    pub offset: u64,
    /// `Err` has the name of what is not read.
    pub number: std::result::Result<Number, String>,
    /// The numbers of a matrix that is the transpose of what lies there, its columns one after the other. A reader that does not turn it around finds it
    /// among what is not read.
    pub transposed: Option<Number>,
    /// Its dimensions.
    pub shape: Vec<u64>,
}

impl Tensor {
    /// Its bytes, which lie beside each other, where its numbers are known.
    pub fn bytes(&self) -> Option<u64> {
        let size = self.number.as_ref().ok().or(self.transposed.as_ref())?.size();
        self.shape.iter().try_fold(size, |bytes, &n| bytes.checked_mul(n))
    }

    /// Numbers and shape, for messages.
    pub fn described(&self) -> String {
        let number = self.number.as_ref().map_or_else(Clone::clone, |number| number.name().to_string());
        format!("{number} {:?}", self.shape)
    }
}

/// The tensors of a file.
#[derive(Debug, Clone)]
pub struct Tensors {
    /// By name: safetensors by the order of their names, those of an archive as they stand in it, with names of nested containers joined by dots and
    /// elements of lists numbered.
    pub named: Vec<(String, Tensor)>,
    /// Names of those among these containers that are lists with tensors for elements: no tuples and no dictionaries.
    pub lists: Vec<String>,
    /// What says where they lie, as it stands in the file: safetensors' header, or the archive's pickle.
    pub head: Bytes,
}
