/**
 * Joins the store at the end of the day, when everything has happened, and reads the history of all orders from the
 * beginning. The queues have forgotten these messages; the stream has kept them.
 */
import { ready, sluice, tell } from './crew.js'
import { History, type Happening } from './orders.js'

await ready()
const happenings: Happening[] = []
for await (const { body } of sluice.read(History, { from: 'first' })) happenings.push(body)
await tell({ kind: 'history', happenings })
