"""The service's rules, without IO: values in, values or errors out."""
