/** Makes the worker of a `consume` call: its kind depends on the settings and on the schema of the queue. */
import { GroupWorker, type GroupHandler } from './groups.js'
import type { Queue, WorkerSettings } from './options.js'
import { Reader } from './schema.js'
import type { Session } from './session.js'
import { SingleWorker, type SingleHandler } from './singles.js'
import type { BatchHandler, ConsumingWorker, Handler } from './worker.js'

/** `forget` is called when the worker is closed. The type of a body is declared by the caller and not checked without a schema. */
export function workerOf<Output>(
  session: Session,
  { name, schema }: Queue,
  settings: WorkerSettings,
  handler: Handler<Output> | BatchHandler<Output>,
  forget: (worker: ConsumingWorker) => void,
): ConsumingWorker {
  const reader = schema === undefined ? undefined : new Reader(schema, session)
  if (settings.batch !== undefined) {
    const whole = handler as unknown as GroupHandler
    return new GroupWorker(session, name, settings, reader?.forGroups(whole) ?? whole, forget)
  }
  const whole = handler as unknown as SingleHandler
  const single = reader?.forSingles(whole) ?? whole
  // With one handler at a time, messages are in order anyway.
  if (!settings.ordered || settings.concurrency === 1)
    return new SingleWorker(session, name, settings, single, forget)
  const group: GroupHandler = ([message]) => single(message!, message!)
  return new GroupWorker(session, name, settings, group, forget)
}
