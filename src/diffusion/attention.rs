//! Attention layers of the UNet and the autoencoder.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::watch::{AttentionEvent, Layer, Scores, Watch};
use crate::error::Result;
use crate::geometry::Size;
use crate::nn::{LayerNorm, Linear};
use crate::weights::Scope;

/// `[batch, n, channels]` to `[batch, heads, n, d]`.
fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    let (b, n, c) = x.size3().unwrap_or((0, 0, 0));
    x.view([b, n, heads, c / heads]).transpose(1, 2)
}

fn attend(query: &Tensor, key: &Tensor, value: &Tensor, upcast: bool) -> Tensor {
    let (b, heads, n, d) = query.size4().unwrap_or((0, 0, 0, 0));
    let fused = |q: &Tensor, k: &Tensor, v: &Tensor| {
        Tensor::scaled_dot_product_attention::<Tensor>(q, k, v, None, 0.0, false, None, false)
    };
    let kind = query.kind();
    let out = if upcast && kind != Kind::Float {
        let up = |t: &Tensor| t.to_kind(Kind::Float);
        fused(&up(query), &up(key), &up(value)).to_kind(kind)
    } else {
        fused(query, key, value)
    };
    out.transpose(1, 2).reshape([b, n, heads * d])
}

/// Keys and values of a prompt batch for one cross-attention layer; the same in every step.
pub(super) struct KeyValue {
    key: Tensor,
    value: Tensor,
}

struct CrossLayer {
    query: Linear,
    key_value: Linear,
    out: Linear,
}

/// Self-attention, cross-attention and a gated feed-forward layer, each with its norm.
struct TransformerBlock {
    norm1: LayerNorm,
    self_qkv: Linear,
    self_out: Linear,
    norm2: LayerNorm,
    cross: CrossLayer,
    norm3: LayerNorm,
    gate: Linear,
    down: Linear,
}

/// A spatial transformer: the feature map as a sequence, through a few transformer blocks.
pub(super) struct SpatialTransformer {
    norm: super::blocks::GroupNorm,
    project_in: Linear,
    blocks: Vec<TransformerBlock>,
    project_out: Linear,
    heads: i64,
    upcast: bool,
}

/// What all transformers of a UNet share.
pub(super) struct TransformerShape {
    pub heads: i64,
    pub layers: usize,
    pub context: i64,
    pub groups: i64,
    pub upcast: bool,
}

impl SpatialTransformer {
    pub(super) fn load(scope: &Scope, channels: i64, shape: &TransformerShape) -> Result<Self> {
        /// Epsilon of the norm before every spatial transformer, in every published UNet.
        const EPS: f64 = 1e-6;
        let c = channels;
        let blocks = (0..shape.layers)
            .map(|i| {
                let s = scope.sub("transformer_blocks").sub(i);
                let (a, x) = (s.sub("attn1"), s.sub("attn2"));
                let qkv = [a.sub("to_q"), a.sub("to_k"), a.sub("to_v")];
                let kv = [x.sub("to_k"), x.sub("to_v")];
                Ok(TransformerBlock {
                    norm1: LayerNorm::load(&s.sub("norm1"), c, 1e-5)?,
                    self_qkv: Linear::load_joined(&qkv, c, c)?,
                    self_out: Linear::load(&a.sub("to_out.0"), c, c, true)?,
                    norm2: LayerNorm::load(&s.sub("norm2"), c, 1e-5)?,
                    cross: CrossLayer {
                        query: Linear::load(&x.sub("to_q"), c, c, false)?,
                        key_value: Linear::load_joined(&kv, shape.context, c)?,
                        out: Linear::load(&x.sub("to_out.0"), c, c, true)?,
                    },
                    norm3: LayerNorm::load(&s.sub("norm3"), c, 1e-5)?,
                    gate: Linear::load(&s.sub("ff.net.0.proj"), c, 8 * c, true)?,
                    down: Linear::load(&s.sub("ff.net.2"), 4 * c, c, true)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            norm: super::blocks::GroupNorm::load(&scope.sub("norm"), c, shape.groups, EPS)?,
            project_in: Linear::load_pointwise(&scope.sub("proj_in"), c, c)?,
            blocks,
            project_out: Linear::load_pointwise(&scope.sub("proj_out"), c, c)?,
            heads: shape.heads,
            upcast: shape.upcast,
        })
    }

    /// Number of cross-attention layers.
    pub(super) fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Keys and values of `embeddings [batch, tokens, context]`, one per transformer block.
    pub(super) fn key_values(&self, embeddings: &Tensor) -> Vec<KeyValue> {
        self.blocks
            .iter()
            .map(|block| {
                let both = block.cross.key_value.forward(embeddings).chunk(2, -1);
                KeyValue {
                    key: split_heads(&both[0], self.heads).contiguous(),
                    value: split_heads(&both[1], self.heads).contiguous(),
                }
            })
            .collect()
    }

    /// `[batch, channels, h, w]` to the same shape. `first` is the layer of the first block, the
    /// others count on from it; the rows `conditional` hold a prompt.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        context: &[KeyValue],
        first: Layer,
        conditional: &Range<i64>,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor> {
        let (b, c, h, w) = x.size4().unwrap_or((0, 0, 0, 0));
        let (heads, d) = (self.heads, c / self.heads);
        // No copy where the memory format is channels-last.
        let flat = self
            .norm
            .forward(x)
            .permute([0, 2, 3, 1])
            .contiguous()
            .view([b, h * w, c]);
        let mut y = self.project_in.forward(&flat);
        for (i, (block, kv)) in self.blocks.iter().zip(context).enumerate() {
            let qkv = block.self_qkv.forward(&block.norm1.forward(&y));
            let qkv = qkv.view([b, h * w, 3, heads, d]).permute([2, 0, 3, 1, 4]);
            let attended = attend(
                &qkv.select(0, 0),
                &qkv.select(0, 1),
                &qkv.select(0, 2),
                self.upcast,
            );
            y += block.self_out.forward(&attended);

            let query = block.cross.query.forward(&block.norm2.forward(&y));
            let query = split_heads(&query, heads);
            watch.attention(&AttentionEvent {
                layer: Layer {
                    index: first.index + i,
                    ..first
                },
                grid: Size::new(h as u32, w as u32),
                heads,
                scores: Scores::QueryKey {
                    query: &query,
                    key: &kv.key,
                    scale: 1.0 / (d as f64).sqrt(),
                },
                text: 0..kv.key.size()[2],
                conditional: conditional.clone(),
            })?;
            let attended = attend(&query, &kv.key, &kv.value, self.upcast);
            y += block.cross.out.forward(&attended);

            let parts = block.gate.forward(&block.norm3.forward(&y)).chunk(2, -1);
            y += block.down.forward(&(&parts[0] * parts[1].gelu("none")));
        }
        let out = self
            .project_out
            .forward(&y)
            .view([b, h, w, c])
            .permute([0, 3, 1, 2]);
        Ok(x + out)
    }
}

/// The single-head self-attention in the middle of the autoencoder.
pub(super) struct MidAttention {
    norm: super::blocks::GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl MidAttention {
    pub(super) fn load(scope: &Scope, channels: i64, groups: i64, eps: f64) -> Result<Self> {
        // Checkpoints from before the attention classes were joined have the older names, and
        // some hold 1x1 convolutions.
        let old = scope.has("proj_attn.weight");
        let linear = |new: &str, before: &str| {
            let name = if old { before } else { new };
            Linear::load_pointwise(&scope.sub(name), channels, channels)
        };
        Ok(Self {
            norm: super::blocks::GroupNorm::load(
                &scope.sub("group_norm"),
                channels,
                groups,
                eps,
            )?,
            query: linear("to_q", "query")?,
            key: linear("to_k", "key")?,
            value: linear("to_v", "value")?,
            out: linear("to_out.0", "proj_attn")?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let (b, c, h, w) = x.size4().unwrap_or((0, 0, 0, 0));
        let flat = self
            .norm
            .forward(x)
            .permute([0, 2, 3, 1])
            .contiguous()
            .view([b, h * w, c]);
        let head = |l: &Linear| split_heads(&l.forward(&flat), 1);
        let attended = attend(
            &head(&self.query),
            &head(&self.key),
            &head(&self.value),
            false,
        );
        x + self
            .out
            .forward(&attended)
            .view([b, h, w, c])
            .permute([0, 3, 1, 2])
    }
}
