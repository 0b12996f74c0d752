//! What sources, refiners and checks may borrow from outside of this room.

use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Objects lent by whoever runs a recipe, one per type: a loaded model, the bank that the
/// instances go to. A kind that needs one asks for its type, so this room depends on none of them.
#[derive(Clone, Default)]
pub struct Tools {
    lent: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl Tools {
    /// Lends an object; it replaces one of the same type.
    pub fn lend<T: Any + Send + Sync>(&mut self, tool: Arc<T>) {
        self.lent.insert(TypeId::of::<T>(), tool);
    }

    /// The lent object of this type; `who` asks.
    ///
    /// # Errors
    /// [`Error::Value`] when none was lent.
    pub fn get<T: Any + Send + Sync>(&self, who: &str) -> Result<&T> {
        self.lent
            .get(&TypeId::of::<T>())
            .and_then(|tool| tool.downcast_ref())
            .ok_or_else(|| {
                Error::value(
                    format!("what {who} needs"),
                    format!("a {}", type_name::<T>()),
                    "none where this recipe runs",
                )
            })
    }
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tools({} lent)", self.lent.len())
    }
}
