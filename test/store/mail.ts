/** A worker that writes to customers that their order is on its way, or that it is still unpaid. */
import { setTimeout as pause } from 'node:timers/promises'
import { once, ready, sluice } from './crew.js'
import { Mails, Reminders } from './orders.js'

const SEND_MS = 5

sluice.consume(Mails, { concurrency: 4 }, (message) => once('mailed', message, () => pause(SEND_MS)))
sluice.consume(Reminders, (message) => once('reminded', message, () => pause(SEND_MS)))
await ready()
