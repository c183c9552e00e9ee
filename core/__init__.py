"""vLLM Workbench without a user interface.

Importing this package is instant: no engine, no model library and no
streamlit is imported until something needs it.
"""

__version__ = "0.1.0"
