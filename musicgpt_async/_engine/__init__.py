"""The engine of a session: from a submit to the files of a track.

The way of one track, from ``session.submit()`` to its report:

1. The **session** checks the options; the **runtime** makes a job (``job_state``), its handle, and
   a turn, which it pushes into the **queue**.
2. The queue gives the turn out when the job is the first in order, a slot of the account is free,
   and credit is left. The queue knows which jobs hold slots; one that ends frees its own.
   With a journal, ``shared_account`` has its database grant the slot, for all processes as one.
3. The **runner** starts one coroutine for the job. It opens the track and registers the job in the
   journal through the **store**, which keeps its claim: the right to write this record. If the
   journal has the track already, **following** takes the job instead: it ends as the claim's holder
   does, or resumes the record once the claim is free.
4. **Submission** delivers the track: the body goes out up to its closing boundary; the record is
   durable before the boundary follows, and from then on the wait for the response is shielded.
   What became of it comes back as a value. Not delivered: again in the same slot. Not accepted:
   back into the queue. Refused: the job fails. Lost: **recovery** waits for the job's webhook, and
   for a resumed job searches the account's listing; it holds no slot meanwhile.
5. Accepted: the runner's coroutine ends, and the job is an entry of the **poller**, which shares
   the account's polls among all jobs. **Deliveries** dispatches the webhooks from the receiver's
   queue; each only has its job polled at once, and one that names a new task is acknowledged when
   that is durable.
6. A poll sees the end: the slot is free, the record is saved, the waiters of the handle wake.
7. ``job.download()`` waits for that; **downloads** reclaims the record, plans the files, downloads
   them in parallel and adds each to the record. With the last one the claim is given back. The
   command's report is made of these records.

Rules of the engine:

- **Jobs** is the only writer. The parts say what happened (a trigger); the table in ``lifecycle``
  says the next state and its effects; ``Jobs.apply`` changes the record and calls the observers in
  the order that the runtime lists. No part calls another back.
- Every child is started by the **supervisor** and has an owner that receives its failure. A part
  that stops while the session is open ends the session with an error that says so.
- Whatever raises after acceptance leaves the job accepted; leaving the session leaves its record
  as it is, for whoever resumes it.
"""
