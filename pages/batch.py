"""Batch: a table in, a prompt over its columns, the table with answers out. `?run=ID` shows one run."""

import streamlit as st

from core.errors import RunNotFound
from pages.parts import batch_setup, job_panel, queue_panel, run_actions, session
from pages.parts.markdown import plain_text

st.title("Batch")
run_id = job_panel.chosen_run()

if run_id is None:
    st.write("Run the model over every row of a table. Answers are kept as they come; nothing is lost.")
    batch_setup.choose_table()
    queue_panel.draw()
    job_panel.earlier_runs()
else:
    try:
        run = session.jobs().open(run_id)
        progress = session.jobs().progress(run_id)
    except RunNotFound as error:
        st.error(plain_text(error.message))
        if st.button("Choose a table", icon=":material/table:"):
            job_panel.choose_run(None)
        st.stop()
    if progress.state == "draft":
        batch_setup.draft(run)
    elif run_actions.is_edited(run):
        batch_setup.edit(run)
    else:
        job_panel.draw(run, progress)
