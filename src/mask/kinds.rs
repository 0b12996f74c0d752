//! How a recipe names what runs: `{"kind": NAME, ...parameters}`.

/// Declares the kinds of one seam: an enum that serde tags by `kind`, which derefs to the trait.
///
/// The last lines of each use are the registration: one line per kind.
macro_rules! kinds {
    (
        $(#[$doc:meta])*
        $name:ident: dyn $seam:ident {
            $( $(#[$attr:meta])* $kind:literal => $variant:ident($params:ty), )+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(tag = "kind")]
        #[non_exhaustive]
        pub enum $name {
            $(
                $(#[$attr])*
                #[doc = concat!("`", $kind, "`")]
                #[serde(rename = $kind)]
                $variant($params),
            )+
        }

        impl $name {
            /// The names that a recipe can use, in the order that messages list them.
            pub const KINDS: &'static [&'static str] = &[$( $(#[$attr])* $kind, )+];

            /// The name in a recipe.
            pub const fn kind(&self) -> &'static str {
                match self {
                    $( $(#[$attr])* Self::$variant(_) => $kind, )+
                }
            }
        }

        impl std::ops::Deref for $name {
            type Target = dyn $seam;

            fn deref(&self) -> &Self::Target {
                match self {
                    $( $(#[$attr])* Self::$variant(params) => params, )+
                }
            }
        }
    };
}

pub(crate) use kinds;
