/** Schemas of queues: what is published is checked against them, and what is delivered is read through them. */
import { SluiceError } from '@sluice/protocol'
import type { Queue } from './options.js'

export type Schema = NonNullable<Queue['schema']>

/** @throws SluiceError INVALID_BODY naming the first things that the schema does not like */
export async function checkBody(schema: Schema, body: unknown, what: string): Promise<void> {
  const { issues } = await schema['~standard'].validate(body)
  if (issues === undefined) return
  throw new SluiceError(
    'INVALID_BODY',
    `The ${what} does not match the schema of its queue: ${told(issues)}.`,
  )
}

type Issues = NonNullable<Awaited<ReturnType<Schema['~standard']['validate']>>['issues']>

const ISSUES_TOLD = 3

function told(issues: Issues): string {
  return issues
    .slice(0, ISSUES_TOLD)
    .map(({ message, path }) => {
      const steps = (path ?? []).map((step) => String(typeof step === 'object' ? step.key : step))
      return steps.length === 0 ? message : `${steps.join('.')}: ${message}`
    })
    .join('; ')
}
