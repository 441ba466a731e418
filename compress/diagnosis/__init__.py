"""Why a pivot is not float: which tensor's rounding costs what at the component's outputs, and what would help."""
