"""The engine of a session: from a submit to the files of a track.

The way of one track, from ``session.submit()`` to its report:

1. The **session** checks the options; the **runtime** makes a job (``job_state``), its handle and a
   turn, and pushes the turn into the **queue**.
2. The queue gives the turn out when it is the first in order, credit is left, and a slot is free or
   soon will be: then the upload runs ahead. It knows which jobs hold slots, and frees the slot of a
   job that ends. With a journal, ``shared_account`` has the database grant slots to all processes.
3. The **runner** starts one coroutine for the job. It opens the track and registers the job in the
   journal through the **store**, which gives the job its claim: the right to save this record. If
   the journal has the track already, **following** takes the job instead: it ends as the claim's
   holder does, or resumes the record once the claim is free.
4. **Submission** delivers the track. The body goes out up to its closing boundary, where one that
   ran ahead waits for its slot. The record is durable before the boundary follows, and from then on
   the wait for the response is shielded. The result is a value. Not delivered: again in the same
   slot. Not accepted: back into the queue. Refused: the job fails. Lost: **recovery** waits for the
   job's webhook, and for a resumed job searches the account's listing; it holds no slot meanwhile.
5. Accepted: the runner's coroutine ends, and the job is an entry of the **poller**, which shares
   the account's polls among all jobs. **Deliveries** dispatches the receiver's webhooks: a delivery
   has its job polled at once, and is acknowledged when a task id that it brings is durable.
6. A poll finds the job finished: its slot is freed, the record is saved in the background, and the
   waiters of the handle wake.
7. ``job.download()`` waits for that; **downloads** reclaims the record, plans the files, downloads
   them in parallel and adds each to the record. With the last one the claim is given back. The
   command's report is made of these records.

Rules of the engine:

- **Jobs** is the only writer of records. The parts say what happened (a trigger); the table in
  ``lifecycle`` has the next state and its effects; ``Jobs.apply`` changes the record and calls the
  observers in the order that the runtime lists. No part calls another back.
- ``supervision`` runs every child, and gives its failure to the child's owner. A part that stops
  while the session is open ends the session with an error that says so.
- An error after acceptance leaves the job accepted; closing the session leaves the record as it is,
  so that the job can be resumed.
"""
