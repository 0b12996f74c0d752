//! The few layers that the text encoder and the diffusion model share.

use tch::Tensor;

use crate::error::Result;
use crate::weights::Scope;

/// `x W^T + b`.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads `weight [outputs, inputs]` and, with `bias`, `bias [outputs]`.
    ///
    /// # Errors
    /// As [`crate::weights::Weights::tensor`].
    pub fn load(scope: &Scope, inputs: i64, outputs: i64, bias: bool) -> Result<Self> {
        Ok(Self {
            weight: scope.tensor("weight", &[outputs, inputs])?,
            bias: if bias {
                Some(scope.tensor("bias", &[outputs])?)
            } else {
                None
            },
        })
    }

    /// Loads either a linear layer or a 1x1 convolution, which is the same product.
    ///
    /// # Errors
    /// As [`crate::weights::Weights::tensor`].
    pub fn load_pointwise(scope: &Scope, inputs: i64, outputs: i64) -> Result<Self> {
        let weight = match scope.tensor("weight", &[outputs, inputs]) {
            Ok(weight) => weight,
            Err(first) => scope
                .tensor("weight", &[outputs, inputs, 1, 1])
                .map_err(|_| first)?
                .view([outputs, inputs]),
        };
        Ok(Self {
            weight,
            bias: Some(scope.tensor("bias", &[outputs])?),
        })
    }

    /// One layer that computes several without bias at once, their outputs side by side.
    ///
    /// # Errors
    /// As [`crate::weights::Weights::tensor`].
    pub fn load_joined(scopes: &[Scope], inputs: i64, outputs: i64) -> Result<Self> {
        let parts = scopes
            .iter()
            .map(|s| s.tensor("weight", &[outputs, inputs]))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            weight: Tensor::cat(&parts, 0),
            bias: None,
        })
    }

    /// `[..., inputs]` to `[..., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

/// Layer normalisation over the last axis.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Loads `weight [width]` and `bias [width]`.
    ///
    /// # Errors
    /// As [`crate::weights::Weights::tensor`].
    pub fn load(scope: &Scope, width: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: scope.tensor("weight", &[width])?,
            bias: scope.tensor("bias", &[width])?,
            eps,
        })
    }

    /// Same shape out.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            true,
        )
    }
}
