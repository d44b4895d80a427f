//! Serialising to JSON with an error for numbers that JSON can't represent.
//!
//! `serde_json` writes NaN and infinities as `null`, which hides the bug: a reader takes it for a
//! value that was not measured. Here they are errors that name the field.

use std::fmt;

use serde::Serialize;
use serde::ser::{self, Serializer};
use serde_json::Value;

use super::validation::ValidationError;

/// Serialises a value to JSON.
///
/// # Errors
///
/// The path of the first NaN or infinity, or why the value can't be serialised at all.
pub(super) fn to_value<T: Serialize + ?Sized>(value: &T) -> Result<Value, ValidationError> {
    value.serialize(Finite).map_err(|NotFinite(error)| error)?;
    serde_json::to_value(value).map_err(|error| ValidationError::new("", format!("can't be JSON: {error}")))
}

/// A serializer that writes nothing and stops at the first number that JSON can't represent.
struct Finite;

/// The error of [`Finite`]. Each level adds its part of the path.
#[derive(Debug)]
struct NotFinite(ValidationError);

impl NotFinite {
    fn within(self, parent: impl fmt::Display) -> Self {
        Self(self.0.within(parent))
    }
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for NotFinite {}

impl ser::Error for NotFinite {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(ValidationError::new("", format!("can't be JSON: {message}")))
    }
}

fn float(value: f64) -> Result<(), NotFinite> {
    if value.is_finite() {
        return Ok(());
    }
    Err(NotFinite(ValidationError::new(
        "",
        format!("is {value}, which JSON can't represent: expected a number or nothing"),
    )))
}

/// Methods for values without floating point numbers.
macro_rules! no_floats {
    ($($method:ident($($argument:ty),*);)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<(), NotFinite> { Ok(()) })*
    };
}

impl Serializer for Finite {
    type Ok = ();
    type Error = NotFinite;
    type SerializeSeq = Elements;
    type SerializeTuple = Elements;
    type SerializeTupleStruct = Elements;
    type SerializeTupleVariant = Elements;
    type SerializeMap = Entries;
    type SerializeStruct = Entries;
    type SerializeStructVariant = Entries;

    no_floats! {
        serialize_bool(bool); serialize_i8(i8); serialize_i16(i16); serialize_i32(i32); serialize_i64(i64);
        serialize_u8(u8); serialize_u16(u16); serialize_u32(u32); serialize_u64(u64);
        serialize_i128(i128); serialize_u128(u128);
        serialize_char(char); serialize_str(&str); serialize_bytes(&[u8]);
        serialize_none(); serialize_unit(); serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    fn serialize_f32(self, value: f32) -> Result<(), NotFinite> {
        float(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), NotFinite> {
        float(value)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotFinite> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), NotFinite> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), NotFinite> {
        value.serialize(self).map_err(|error| error.within(variant))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Elements, NotFinite> {
        Ok(Elements::default())
    }

    fn serialize_tuple(self, _: usize) -> Result<Elements, NotFinite> {
        Ok(Elements::default())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Elements, NotFinite> {
        Ok(Elements::default())
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Elements, NotFinite> {
        Ok(Elements { index: 0, variant })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Entries, NotFinite> {
        Ok(Entries::default())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Entries, NotFinite> {
        Ok(Entries::default())
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Entries, NotFinite> {
        Ok(Entries {
            key: String::new(),
            variant,
        })
    }
}

#[derive(Default)]
struct Elements {
    index: usize,
    variant: &'static str,
}

impl Elements {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotFinite> {
        let (index, variant) = (self.index, self.variant);
        self.index += 1;
        value
            .serialize(Finite)
            .map_err(|error| error.within(format_args!("{variant}[{index}]")))
    }
}

#[derive(Default)]
struct Entries {
    key: String,
    variant: &'static str,
}

impl Entries {
    fn entry<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), NotFinite> {
        value.serialize(Finite).map_err(|error| {
            let error = error.within(key);
            if self.variant.is_empty() {
                error
            } else {
                error.within(self.variant)
            }
        })
    }
}

macro_rules! elements {
    ($($of:ident::$method:ident)*) => {$(
        impl ser::$of for Elements {
            type Ok = ();
            type Error = NotFinite;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotFinite> {
                self.element(value)
            }

            fn end(self) -> Result<(), NotFinite> {
                Ok(())
            }
        }
    )*};
}

elements! {
    SerializeSeq::serialize_element
    SerializeTuple::serialize_element
    SerializeTupleStruct::serialize_field
    SerializeTupleVariant::serialize_field
}

impl ser::SerializeMap for Entries {
    type Ok = ();
    type Error = NotFinite;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotFinite> {
        key.serialize(Finite)?;
        self.key = match serde_json::to_value(key) {
            Ok(Value::String(key)) => key,
            Ok(other) => other.to_string(),
            Err(error) => return Err(ser::Error::custom(error)),
        };
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotFinite> {
        self.entry(&self.key, value)
    }

    fn end(self) -> Result<(), NotFinite> {
        Ok(())
    }
}

macro_rules! fields {
    ($($of:ident)*) => {$(
        impl ser::$of for Entries {
            type Ok = ();
            type Error = NotFinite;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), NotFinite> {
                self.entry(key, value)
            }

            fn end(self) -> Result<(), NotFinite> {
                Ok(())
            }
        }
    )*};
}

fields!(SerializeStruct SerializeStructVariant);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize)]
    enum Shape {
        Unit,
        New(f64),
        Pair(f64, f64),
        Named { side: Option<f32> },
    }

    #[derive(Serialize)]
    struct Answer {
        shapes: Vec<Shape>,
        by_name: BTreeMap<u8, (f64, [f64; 2])>,
    }

    fn answer(shapes: Vec<Shape>) -> Answer {
        Answer {
            shapes,
            by_name: BTreeMap::new(),
        }
    }

    #[test]
    fn a_finite_value_becomes_the_json_of_serde_json() {
        let good = answer(vec![
            Shape::Unit,
            Shape::New(0.1),
            Shape::Pair(1.0, 2.0),
            Shape::Named { side: None },
        ]);
        assert_eq!(to_value(&good), Ok(serde_json::to_value(&good).unwrap()));
    }

    #[test]
    fn the_path_of_a_nan_or_an_infinity_is_named() {
        for (shape, path) in [
            (Shape::New(f64::NAN), "shapes[1].New"),
            (Shape::Pair(0.0, f64::INFINITY), "shapes[1].Pair[1]"),
            (
                Shape::Named {
                    side: Some(f32::NEG_INFINITY),
                },
                "shapes[1].Named.side",
            ),
        ] {
            assert_eq!(
                to_value(&answer(vec![Shape::Unit, shape])).unwrap_err().path(),
                path
            );
        }
        let mut deep = answer(vec![]);
        deep.by_name.insert(7, (0.0, [0.0, f64::NAN]));
        let error = to_value(&deep).unwrap_err();
        assert_eq!(
            error.to_string(),
            "by_name.7[1][1] is NaN, which JSON can't represent: expected a number or nothing"
        );
        assert_eq!(to_value(&f64::NAN).unwrap_err().path(), "");
    }

    #[test]
    fn keys_that_json_does_not_have_are_an_error() {
        let odd = BTreeMap::from([((1, 2), 3)]);
        assert!(to_value(&odd).unwrap_err().to_string().contains("can't be JSON"));
    }
}
