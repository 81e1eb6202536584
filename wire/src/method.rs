//! What a method is: declared once, used by the client, the server and the listing.

#![forbid(unsafe_code)]

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One callable method: its name on the wire and the types of its argument and result.
///
/// The [`methods!`](crate::methods) macro implements it for a unit struct; client, server and the machine-readable
/// listing all derive from that one declaration.
pub trait Method {
    /// Name on the wire, `receiver.Method`.
    const NAME: &'static str;
    /// What it does, for people.
    const DOC: &'static str;
    /// Which descriptors it takes and returns, for people; empty for none.
    const FDS: &'static str;
    /// The argument. A JSON `null` stands for its default.
    type Arg: Serialize + DeserializeOwned + Default + Send + 'static;
    /// The result.
    type Reply: Serialize + DeserializeOwned + Default + Send + 'static;

    /// The method's entry in the machine-readable listing.
    fn info() -> MethodInfo
    where
        Self: Sized,
    {
        MethodInfo {
            name: Self::NAME.to_owned(),
            doc: Self::DOC.to_owned(),
            fds: Self::FDS.to_owned(),
            arg: crate::schema::of::<Self::Arg>(),
            result: crate::schema::of::<Self::Reply>(),
        }
    }
}

/// A method as `Airlock.Methods` and `airlock call --list` show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MethodInfo {
    /// `receiver.Method`.
    pub name: String,
    /// What it does.
    pub doc: String,
    /// Descriptors it takes and returns; empty for none.
    pub fds: String,
    /// The argument's shape: an object of field name to type name (nested for structures), or a type name.
    pub arg: serde_json::Value,
    /// The result's shape, likewise.
    pub result: serde_json::Value,
}

/// Declares the methods of one receiver.
///
/// ```
/// use airlock_wire::api::types::Empty;
/// airlock_wire::methods! {
///     receiver "Clock";
///     /// Says what time it is, in nanoseconds since boot.
///     Now: Empty => u64;
///     /// Writes a line to a file every second.
///     Tick: String => Empty, fds "in: the file";
/// }
/// assert_eq!(<Now as airlock_wire::Method>::NAME, "Clock.Now");
/// assert_eq!(methods().len(), 2);
/// ```
///
/// Each entry makes a unit struct that implements [`Method`]; `methods()` lists them in order.
#[macro_export]
macro_rules! methods {
    (receiver $receiver:literal; $( $(#[doc = $doc:literal])+ $name:ident : $arg:ty => $reply:ty $(, fds $fds:literal)? ; )+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub struct $name;

            impl $crate::method::Method for $name {
                const NAME: &'static str = concat!($receiver, ".", stringify!($name));
                const DOC: &'static str = concat!($($doc),+).trim_ascii();
                const FDS: &'static str = concat!("" $(, $fds)?);
                type Arg = $arg;
                type Reply = $reply;
            }
        )+

        /// The methods of this receiver, in the order of their declaration.
        pub fn methods() -> ::std::vec::Vec<$crate::method::MethodInfo> {
            ::std::vec![$( <$name as $crate::method::Method>::info() ),+]
        }
    };
}
