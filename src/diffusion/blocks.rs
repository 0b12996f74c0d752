//! Convolutional building blocks of the UNet and the autoencoder.

use tch::{Device, Tensor};

use crate::error::Result;
use crate::nn::Linear;
use crate::weights::Scope;

/// `x` in channels-last memory order on the CPU, where convolutions and sequences are faster in
/// it; unchanged elsewhere. The shape stays `[batch, channels, h, w]`.
pub(super) fn preferred_format(x: &Tensor) -> Tensor {
    if x.device() == Device::Cpu {
        x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
    } else {
        x.shallow_clone()
    }
}

/// Group normalisation.
pub(super) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    pub(super) fn load(scope: &Scope, channels: i64, groups: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: scope.tensor("weight", &[channels])?,
            bias: scope.tensor("bias", &[channels])?,
            groups,
            eps,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let (_, c, h, w) = x.size4().unwrap_or((0, 0, 0, 0));
        // libtorch's channels-last kernel goes through small maps with few channels per group
        // element by element; a copy in the other order is several times faster there.
        let small = x.device() == Device::Cpu && h * w < 1024 && c / self.groups < 16;
        let x = if small { &x.contiguous() } else { x };
        x.group_norm(
            self.groups,
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            true,
        )
    }

    /// The norm, then `x * sigmoid(x)`.
    pub(super) fn forward_silu(&self, x: &Tensor) -> Tensor {
        self.forward(x).silu_()
    }
}

/// A square convolution.
pub(super) struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    pub(super) fn load(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Result<Self> {
        let weight = scope.tensor("weight", &[outputs, inputs, kernel, kernel])?;
        Ok(Self {
            weight: preferred_format(&weight),
            bias: scope.tensor("bias", &[outputs])?,
            stride,
            padding,
        })
    }

    /// A 3x3 convolution that keeps the size.
    pub(super) fn load3(scope: &Scope, inputs: i64, outputs: i64) -> Result<Self> {
        Self::load(scope, inputs, outputs, 3, 1, 1)
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d(
            &self.weight,
            Some(&self.bias),
            [self.stride, self.stride],
            [self.padding, self.padding],
            [1, 1],
            1,
        )
    }
}

/// Two normalised convolutions around a residual path, with a time embedding in the UNet.
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Linear>,
}

impl Resnet {
    pub(super) fn load(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        time: Option<i64>,
        groups: i64,
        eps: f64,
    ) -> Result<Self> {
        Ok(Self {
            norm1: GroupNorm::load(&scope.sub("norm1"), inputs, groups, eps)?,
            conv1: Conv::load3(&scope.sub("conv1"), inputs, outputs)?,
            time: match time {
                Some(width) => Some(Linear::load(
                    &scope.sub("time_emb_proj"),
                    width,
                    outputs,
                    true,
                )?),
                None => None,
            },
            norm2: GroupNorm::load(&scope.sub("norm2"), outputs, groups, eps)?,
            conv2: Conv::load3(&scope.sub("conv2"), outputs, outputs)?,
            shortcut: if inputs == outputs {
                None
            } else {
                Some(Linear::load_pointwise(
                    &scope.sub("conv_shortcut"),
                    inputs,
                    outputs,
                )?)
            },
        })
    }

    /// `time [batch or 1, width]`, already through its activation.
    pub(super) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Tensor {
        let mut y = self.conv1.forward(&self.norm1.forward_silu(x));
        if let (Some(layer), Some(time)) = (&self.time, time) {
            y += layer.forward(time).unsqueeze(-1).unsqueeze(-1);
        }
        let normed = self.norm2.forward_silu(&y);
        // At full resolution each of these is hundreds of megabytes: none is kept for nothing.
        drop(y);
        let mut y = self.conv2.forward(&normed);
        drop(normed);
        match &self.shortcut {
            Some(linear) => {
                // A 1x1 convolution: a product over the channels.
                let x = linear.forward(&x.permute([0, 2, 3, 1]));
                y += x.permute([0, 3, 1, 2]);
            }
            None => y += x,
        }
        y
    }
}

/// Nearest-neighbour enlargement to `height x width`, then a convolution.
pub(super) struct Upsample {
    conv: Conv,
}

impl Upsample {
    pub(super) fn load(scope: &Scope, channels: i64) -> Result<Self> {
        Ok(Self {
            conv: Conv::load3(&scope.sub("upsamplers.0.conv"), channels, channels)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, height: i64, width: i64) -> Tensor {
        self.conv
            .forward(&x.upsample_nearest2d([height, width], None, None))
    }
}
