//! Bank instances on a real image, as X-Paste does it (arXiv 2212.03863; DiverGen 2405.10185),
//! but on bounding rectangles: the canvas is touched where something lands, and nowhere else.
//!
//! Draw, resize, place, blend; then whatever was there before loses what is covered, and leaves
//! when too little of it remains.

mod blend;
mod cutout;
mod object;
mod plane;
mod poisson;
mod polygons;

use std::cell::RefCell;

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

pub use blend::Blend;
pub use object::{Object, Region};
pub use polygons::exact_polygons;

use crate::bank::{Bank, Choice, InstanceRecord, RecordId};
use crate::error::{Error, Result};
use crate::geometry::{PixelBox, Size};
use crate::rng::{below, keyed, unit};

/// Smallest side of a pasted object, in pixels (X-Paste).
pub const MIN_SIDE: u32 = 5;
/// Smallest target side, in pixels, and largest share of the image's side (X-Paste).
pub const TARGET_RANGE: (f64, f64) = (10.0, 0.5);

/// How large an instance becomes: the *side fraction* is `sqrt(mask area / image area)`.
#[derive(Debug, Clone, PartialEq)]
pub enum SizeRule {
    /// As on the image that it was cut from.
    Natural,
    /// `N(mean, std)` of its category, times the feedback's size factor; natural for categories
    /// without a finite pair. Indexed by category.
    Category(Vec<[f32; 2]>),
    /// Uniform over `low..high`.
    Range(f64, f64),
}

/// From which instances is drawn; see [`Choice`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// A category uniformly, then an instance of it.
    ClassBalanced,
    /// Uniformly over instances.
    Uniform,
    /// Class-balanced among these categories.
    Categories(Vec<u32>),
}

/// How to paste.
#[derive(Debug, Clone, PartialEq)]
pub struct PasteOptions {
    /// Fewest instances drawn.
    pub min_instances: u32,
    /// The number of instances is uniform over `min_instances..max_instances` (exclusive, as
    /// X-Paste's 0..20), or `min_instances` when that is empty.
    pub max_instances: u32,
    /// From which instances is drawn.
    pub mode: Mode,
    /// How large they become.
    pub size: SizeRule,
    /// The width to height ratio is multiplied by `1 - jitter ..= 1 + jitter`.
    pub aspect_jitter: f64,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Probability of a vertical flip.
    pub vertical_flip: f64,
    /// Turned by up to this many degrees either way.
    pub rotation: f64,
    /// One of these for each instance.
    pub blend: Vec<Blend>,
    /// Share of an instance's box that may lie outside the image on each side.
    pub outside: f64,
    /// An earlier object stays when its box moved by at most this on every side, in pixels ...
    pub box_tolerance: f64,
    /// ... or when it keeps more than this many pixels.
    pub keep_area: u64,
    /// The image is BGR (the bank is RGB).
    pub bgr: bool,
}

impl Default for PasteOptions {
    fn default() -> Self {
        Self {
            min_instances: 0,
            max_instances: 20,
            mode: Mode::ClassBalanced,
            size: SizeRule::Natural,
            aspect_jitter: 0.2,
            flip: 0.5,
            vertical_flip: 0.0,
            rotation: 0.0,
            blend: vec![Blend::Hard],
            outside: 0.25,
            box_tolerance: 10.0,
            keep_area: 300,
            bgr: false,
        }
    }
}

impl PasteOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let within = |what: &str, v: f64, low: f64, high: f64| {
            if (low..=high).contains(&v) {
                Ok(())
            } else {
                Err(Error::value(what, format!("{low}..={high}"), v))
            }
        };
        within("aspect_jitter", self.aspect_jitter, 0.0, 0.9)?;
        within("flip", self.flip, 0.0, 1.0)?;
        within("vertical_flip", self.vertical_flip, 0.0, 1.0)?;
        within("rotation", self.rotation, 0.0, 180.0)?;
        within("outside", self.outside, 0.0, 0.95)?;
        within("box_tolerance", self.box_tolerance, 0.0, 1e9)?;
        if let SizeRule::Range(low, high) = self.size {
            within("size range", low, 0.0, 1.0)?;
            within("size range", high, low, 1.0)?;
        }
        if self.blend.is_empty() {
            return Err(Error::value("blend", "at least one mode", "none"));
        }
        if self.min_instances.max(self.max_instances) > 10_000 {
            return Err(Error::value(
                "max_instances",
                "at most 10000",
                self.max_instances,
            ));
        }
        Ok(())
    }
}

/// What was pasted.
#[derive(Debug, Clone, PartialEq)]
pub struct Pasted {
    /// The instance's id.
    pub id: RecordId,
    /// Its mosaic's id (empty for imported ones).
    pub mosaic: String,
    /// Index into the bank's category table.
    pub category: u32,
    /// Its visible box on the image when it was pasted, in pixels.
    pub bbox: PixelBox,
    /// How it was blended.
    pub blend: Blend,
    /// Its area over the area that it has in the bank, before clipping.
    pub scale: f64,
    /// How often it had been used before.
    pub uses: u32,
    /// Whether later pastes left enough of it to keep it.
    pub kept: bool,
}

/// Pastes instances of `bank` on `image` (`u8 [H, W, 3]`) and updates `objects`: pasted ones are
/// appended, covered pixels removed, and `Object::kept` says which stay.
///
/// Everything is drawn from `seed`: the same bank, use counts and seed give the same image.
///
/// # Errors
/// [`Error::Value`] for wrong options or sizes, [`Error::Format`] when the bank is damaged beyond
/// skipping records.
pub fn paste(
    image: &mut [u8],
    size: Size,
    objects: &mut Vec<Object>,
    bank: &Bank,
    options: &PasteOptions,
    seed: u64,
) -> Result<Vec<Pasted>> {
    options.validate()?;
    if image.len() as u64 != size.area() * 3 || size.area() == 0 {
        return Err(Error::value(
            "image",
            format!("{} x {} x 3 bytes, not empty", size.height, size.width),
            format!("{} bytes", image.len()),
        ));
    }
    let mut rng = keyed(seed, "paste", 0);
    let span = options.max_instances.saturating_sub(options.min_instances);
    let n = options.min_instances + below(rng.next_u64(), u64::from(span)) as u32;
    let choice = match &options.mode {
        Mode::ClassBalanced => Choice::ClassBalanced,
        Mode::Uniform => Choice::Uniform,
        Mode::Categories(list) => Choice::Categories(list),
    };
    let first = objects.len();
    let mut pasted = Vec::new();
    for k in 0..n {
        // A stream per instance: what one draws does not move the next.
        let rng = RefCell::new(keyed(seed, "paste instance", u64::from(k)));
        let mut planned = None;
        // The bank decodes no larger a picture than the plan needs.
        let drawn = bank.draw_instance_near(
            &choice,
            &mut || rng.borrow_mut().next_u64(),
            &mut |instance| {
                planned = plan(instance, size, options, bank, &mut *rng.borrow_mut());
                let t = planned.as_ref()?.transform;
                Some(Size::new(t.height as u32, t.width as u32))
            },
        )?;
        let Some(drawn) = drawn else {
            break;
        };
        let instance = &drawn.record;
        let Some(placed) = planned.and_then(|p| place(image, size, instance, &p)) else {
            continue;
        };
        for object in objects.iter_mut() {
            object.cover(&placed.region);
        }
        pasted.push(Pasted {
            id: instance.id,
            mosaic: instance.provenance.mosaic.clone(),
            category: instance.category,
            bbox: placed.region.bbox(),
            blend: placed.blend,
            scale: placed.scale,
            uses: drawn.uses,
            kept: true,
        });
        objects.push(Object::pasted(placed.region, instance.category));
    }
    for object in objects.iter_mut() {
        object.decide(options.box_tolerance, options.keep_area);
    }
    for (p, object) in pasted.iter_mut().zip(objects.iter().skip(first)) {
        p.kept = object.kept;
    }
    Ok(pasted)
}

struct Plan {
    transform: cutout::Transform,
    blend: Blend,
    scale: f64,
    outside: f64,
    /// Where in its range the corner lies, 0..1.
    place: (f64, f64),
}

/// Draws size, shape and place; `None` when it comes out too small.
fn plan(
    instance: &InstanceRecord,
    size: Size,
    o: &PasteOptions,
    bank: &Bank,
    rng: &mut impl Rng,
) -> Option<Plan> {
    let mut u = || unit(rng.next_u64());
    let draws = [u(), u(), u(), u(), u(), u(), u(), u()];
    let [aspect, flip_x, flip_y, turn, mode, x, y, range] = draws;
    let normal: f64 = StandardNormal.sample(rng);
    let image_area = size.area() as f64;
    let natural = (instance.area as f64 / instance.canvas.area().max(1) as f64).sqrt();
    let fraction = match &o.size {
        SizeRule::Natural => natural,
        SizeRule::Range(low, high) => low + (high - low) * range,
        SizeRule::Category(stats) => match stats.get(instance.category as usize) {
            Some([mean, std]) if mean.is_finite() && std.is_finite() && *mean > 0.0 => {
                let factor = bank
                    .board()
                    .map_or(1.0, |b| f64::from(b.get(instance.category).size_factor));
                f64::from(*mean) * factor + f64::from(std.abs()) * normal
            }
            _ => natural,
        },
    };
    let (low, high) = (TARGET_RANGE.0 / image_area.sqrt(), TARGET_RANGE.1);
    // On images of less than 20 px a side the bounds cross: the upper one holds.
    let fraction = fraction.max(low).min(high);
    let scale = (fraction * fraction * image_area / instance.area.max(1) as f64).sqrt();
    let aspect = (1.0 + o.aspect_jitter * (2.0 * aspect - 1.0)).sqrt();
    let side = |n: u32, by: f64| (f64::from(n) * scale * by).round();
    let (height, width) = (
        side(instance.size.height, 1.0 / aspect),
        side(instance.size.width, aspect),
    );
    // The crop is larger than the object by a margin; an absurd one ends here.
    let most = 4.0 * f64::from(size.height.max(size.width)) + 64.0;
    if height < 1.0 || width < 1.0 || height > most || width > most {
        return None;
    }
    let mode = ((mode * o.blend.len() as f64) as usize).min(o.blend.len() - 1);
    Some(Plan {
        transform: cutout::Transform {
            height: height as usize,
            width: width as usize,
            flip_x: flip_x < o.flip,
            flip_y: flip_y < o.vertical_flip,
            rotation: ((2.0 * turn - 1.0) * o.rotation) as f32,
            swap: o.bgr,
        },
        blend: o.blend.get(mode).copied().unwrap_or(Blend::Hard),
        scale: scale * scale,
        outside: o.outside,
        place: (x, y),
    })
}

struct Placed {
    region: Region,
    blend: Blend,
    scale: f64,
}

/// Makes the cutout, puts it on the image, and returns what is visible of it.
fn place(image: &mut [u8], size: Size, instance: &InstanceRecord, p: &Plan) -> Option<Placed> {
    let s = cutout::cutout(
        &instance.image,
        &instance.alpha,
        instance.size,
        &p.transform,
    )?;
    let (h, w) = (s.tight.height(), s.tight.width());
    if h < MIN_SIDE || w < MIN_SIDE || h > size.height || w > size.width {
        return None;
    }
    // The foreground's corner is uniform over what keeps enough of its box inside.
    let corner = |image: u32, side: u32, u: f64| {
        let out = (f64::from(side) * p.outside).floor();
        let range = f64::from(image - side) + 2.0 * out + 1.0;
        (u * range).floor().min(range - 1.0) - out
    };
    let x = corner(size.width, w, p.place.0) as i64 - i64::from(s.tight.x0);
    let y = corner(size.height, h, p.place.1) as i64 - i64::from(s.tight.y0);
    let window = plane::window(
        (x, y),
        (s.picture.height, s.picture.width),
        (size.height as usize, size.width as usize),
    )?;
    let region = Region::visible(&s.mask, s.picture.width, window)?;
    let visible = region.bbox();
    if visible.height() < MIN_SIDE || visible.width() < MIN_SIDE {
        return None;
    }
    blend::blend(image, size.width as usize, &s, window, p.blend);
    Some(Placed {
        region,
        blend: p.blend,
        scale: p.scale,
    })
}
