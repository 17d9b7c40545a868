/** Compares a value of the product with the model's. */
import { isSameJson } from '../json.js'
import { Difference } from './state.js'

/** @throws Difference with the fields that differ */
export function same(what: string, product: unknown, model: unknown): void {
  if (isSameJson(product, model)) return
  const [one, other] = [product, model].map((value) =>
    typeof value === 'object' && value !== null && !Array.isArray(value) ? Object.entries(value) : undefined,
  )
  const isOther = ([name, value]: [string, unknown], fields: [string, unknown][]): boolean =>
    !fields.some(([field, same]) => field === name && isSameJson(same, value))
  const [differing, expected] =
    one === undefined || other === undefined
      ? [product, model]
      : [
          Object.fromEntries(one.filter((field) => isOther(field, other))),
          Object.fromEntries(other.filter((field) => isOther(field, one))),
        ]
  throw new Difference(`${what}: ${stable(differing)}, expected ${stable(expected)}`)
}

// JSON of a value, independent of the order of its fields.
function stable(value: unknown): string {
  return JSON.stringify(value, (_key, field: unknown) =>
    typeof field === 'object' && field !== null && !Array.isArray(field)
      ? Object.fromEntries(Object.entries(field).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : field,
  )
}
